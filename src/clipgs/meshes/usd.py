"""Reads USD, .usd .usda .usdc .usdz, as the parts of a mesh, if the extra `usd` is installed.

Colours are linear, by the standard. A mesh has its rest shape: skeletons are not read.

Method: OpenUSD's UsdGeom, UsdShade and UsdPreviewSurface specifications.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder, decode_image
from clipgs.meshes.gltf import transformed
from clipgs.meshes.materials import AlphaMode, Material, Part, Texture, Wrap
from clipgs.meshes.polygons import check_corners, check_face_count, triangulate

_Z_UP = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float64)
_WRAPS: dict[str, Wrap] = {"repeat": "repeat", "mirror": "mirror", "clamp": "clamp", "black": "clamp"}
_MOST_LAYERS, _MOST_PRIMS = 1_000, 200_000


class _Surface(NamedTuple):
    """A material, the primvar and the layout of its texture, and whether its colour is that of the primvars."""

    material: Material
    primvar: str | None = None
    layout: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1, 0, 0), (0, 1, 0))
    of_primvars: bool = True


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """Parts of the file's stage, in metres with Y up (float64), one for each material of each mesh.

    Raises:
        ObjectError: the extra is not installed, the file is damaged, names files outside its folder, or has more than
            `max_faces` triangles.
    """
    try:
        from pxr import Tf
    except ImportError as error:
        raise ObjectError("it is USD: pip install 'clipgs[usd]' adds what reads it") from error
    try:
        with np.errstate(all="ignore"):
            return list(_Stage(path, folder, neutral, max_faces).parts())
    except (Tf.ErrorException, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:] or [""]
        raise ObjectError(f"the USD file is malformed: {reason[0].strip()[:200]}") from error


class _Stage:
    def __init__(self, path: Path, folder: Folder, neutral: Material, max_faces: int) -> None:
        from pxr import Usd, UsdGeom

        self.path, self.folder, self.neutral, self.max_faces = path.resolve(), folder, neutral, max_faces
        self.check_layers()
        self.stage = Usd.Stage.Open(str(self.path))
        self.cache = UsdGeom.XformCache(Usd.TimeCode.EarliestTime())
        self.time = Usd.TimeCode.EarliestTime()
        self.images: dict[str, np.ndarray] = {}
        self.surfaces: dict[str, _Surface] = {}
        self.face_count = self.prim_count = 0

    def check_layers(self) -> None:
        """Refuses layers outside the file's folder, before anything opens them."""
        from pxr import Sdf

        pending, seen = [str(self.path)], set()
        while pending:
            name = pending.pop()
            seen.add(name)
            if len(seen) > _MOST_LAYERS:
                raise ObjectError(f"it names more than {_MOST_LAYERS} layers")
            layer = Sdf.Layer.FindOrOpen(name)
            if layer is None:
                raise ObjectError("one of its layers could not be opened")
            for asset in layer.GetCompositionAssetDependencies():
                full = layer.ComputeAbsolutePath(asset)
                outer = full.partition("[")[0]
                if "://" in full or not Path(outer).resolve().is_relative_to(self.path.parent):
                    raise ObjectError(f"it names {asset[:100]!r}, which is not in its own folder, so it was not opened")
                if not Path(outer).is_file():
                    raise ObjectError(f"it names {asset[:100]!r}, which is missing from its folder")
                if full not in seen:
                    pending.append(full)

    # --- scene ---

    def parts(self) -> Iterator[Part]:
        from pxr import UsdGeom

        # Not by UsdGeom's function, which fails where a writer stored a number of another type.
        header = self.stage.GetRootLayer().pseudoRoot
        metres = float(header.GetInfo("metersPerUnit")) if header.HasInfo("metersPerUnit") else 0.01
        frame = _Z_UP if UsdGeom.GetStageUpAxis(self.stage) == UsdGeom.Tokens.z else np.eye(4)
        scale = metres if np.isfinite(metres) and metres > 0 else 1.0
        yield from self.below(self.stage.GetPseudoRoot(), frame * [[scale], [scale], [scale], [1]], 0)

    def below(self, root: Any, frame: np.ndarray, depth: int) -> Iterator[Part]:
        """Parts of a prim and all below it; `frame` is what follows the world matrix of each."""
        from pxr import Usd, UsdGeom

        walk = iter(Usd.PrimRange(root, Usd.TraverseInstanceProxies(Usd.PrimDefaultPredicate)))
        for prim in walk:
            self.prim_count += 1
            if self.prim_count > _MOST_PRIMS:
                raise ObjectError(f"it has more than {_MOST_PRIMS} prims")
            imageable = UsdGeom.Imageable(prim)
            if imageable and imageable.ComputeVisibility(self.time) == UsdGeom.Tokens.invisible:
                walk.PruneChildren()
            elif prim.IsA(UsdGeom.PointInstancer):
                walk.PruneChildren()
                yield from self.instances(UsdGeom.PointInstancer(prim), frame, depth)
            elif prim.IsA(UsdGeom.Mesh) and imageable.ComputePurpose() in ("default", "render"):
                yield from self.mesh(UsdGeom.Mesh(prim), frame @ self.world(prim))

    def world(self, prim: Any) -> np.ndarray:
        matrix = np.array(self.cache.GetLocalToWorldTransform(prim)).T
        if not np.isfinite(matrix).all():
            raise ObjectError("a prim's transform is not finite")
        return matrix

    def instances(self, instancer: Any, frame: np.ndarray, depth: int) -> Iterator[Part]:
        if depth > 10:
            raise ObjectError("its instancers contain each other too many times")
        matrices = instancer.ComputeInstanceTransformsAtTime(self.time, self.time)
        numbers = instancer.GetProtoIndicesAttr().Get(self.time) or []
        mask = instancer.ComputeMaskAtTime(self.time)
        shown = [n for i, n in enumerate(numbers) if not mask or mask[i]]
        targets = instancer.GetPrototypesRel().GetForwardedTargets()
        world = frame @ self.world(instancer.GetPrim())
        for number, matrix in zip(shown, matrices, strict=True):
            if not 0 <= number < len(targets):
                raise ObjectError(f"an instance names prototype {number}, of which there are {len(targets)}")
            prototype = self.stage.GetPrimAtPath(targets[number])
            if not prototype:
                raise ObjectError(f"it names the prototype {str(targets[number])[:100]}, which it does not have")
            placed = world @ np.array(matrix).T @ np.linalg.pinv(self.world(prototype))
            yield from self.below(prototype, placed, depth + 1)

    # --- meshes ---

    def mesh(self, mesh: Any, matrix: np.ndarray) -> Iterator[Part]:
        from pxr import UsdGeom, UsdShade

        points, sizes, corners = (
            attribute.Get(self.time)
            for attribute in (mesh.GetPointsAttr(), mesh.GetFaceVertexCountsAttr(), mesh.GetFaceVertexIndicesAttr())
        )
        if points is None or sizes is None or corners is None:
            return
        positions = np.array(points, np.float64).reshape(-1, 3)
        sizes, corners = np.array(sizes, np.int64).reshape(-1), np.array(corners, np.int64).reshape(-1)
        if sizes.min(initial=0) < 0 or sizes.sum() != len(corners):
            raise ObjectError(f"a mesh has {len(corners)} indices for {sizes.sum()} corners")
        self.face_count += int((sizes - 2).clip(0).sum())
        check_face_count(self.face_count, self.max_faces)
        check_corners(corners, len(positions))
        faces, polygon = triangulate(positions, corners, sizes)
        holes = mesh.GetHoleIndicesAttr().Get(self.time)
        keep = ~np.isin(polygon, np.array(holes or [], np.int64))
        if mesh.GetOrientationAttr().Get(self.time) == UsdGeom.Tokens.leftHanded:
            faces = faces[:, ::-1]
        of_corner = np.repeat(np.arange(len(sizes)), sizes)

        def at_corners(values: Any, interpolation: str) -> np.ndarray | None:
            """Rows [C, width] of a primvar."""
            rows = np.array(values, np.float64)
            rows = rows.reshape(len(rows), -1) if rows.ndim else rows.reshape(1, 1)
            index = {"constant": corners * 0, "uniform": of_corner, "faceVarying": np.arange(len(corners))}
            chosen = index.get(interpolation, corners)
            return rows[chosen] if len(rows) and chosen.max(initial=0) < len(rows) else None

        primvars = {p.GetPrimvarName(): p for p in UsdGeom.PrimvarsAPI(mesh).FindPrimvarsWithInheritance()}

        def primvar(name: str | None) -> np.ndarray | None:
            found = primvars.get(name)
            values = None if found is None else found.ComputeFlattened(self.time)
            return None if found is None or values is None else at_corners(values, found.GetInterpolation())

        colors = self.colors(primvars, primvar)
        normals = primvar("normals")
        stored = mesh.GetNormalsAttr().Get(self.time)
        if normals is None and stored is not None:
            normals = at_corners(stored, mesh.GetNormalsInterpolation())
        groups = [(mesh.GetPrim(), np.ones(len(sizes), bool))]
        for subset in UsdShade.MaterialBindingAPI(mesh).GetMaterialBindSubsets():
            chosen = np.zeros(len(sizes), bool)
            indices = np.array(subset.GetIndicesAttr().Get(self.time) or [], np.int64)
            check_corners(indices, len(sizes))
            chosen[indices] = True
            groups[0][1][chosen] = False
            groups.append((subset.GetPrim(), chosen))
        for prim, chosen in groups:
            own = faces[keep & chosen[polygon]]
            if not len(own):
                continue
            surface = self.surface(UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0])
            if surface is None:
                surface = _Surface(self.neutral if colors is None else Material())
            material, uv = surface.material, primvar(surface.primvar)
            if uv is not None:
                layout = np.array(surface.layout)
                uv = (uv[:, :2] @ layout[:, :2].T + layout[:, 2]) * (1, -1) + (0, 1)
            shown = colors if surface.of_primvars else None
            if shown is not None:
                alpha = material.base_color_factor[3]
                material = Material((1.0, 1.0, 1.0, alpha), alpha_mode=material.alpha_mode)
                if shown[:, 3].min(initial=1) < 1:
                    material = Material((1.0, 1.0, 1.0, alpha), alpha_mode="BLEND")
            part = Part(positions[corners], own, normals, uv, shown, material)
            yield transformed(part, matrix[None])

    def colors(self, primvars: dict[str, Any], primvar: Any) -> np.ndarray | None:
        """Of displayColor, or of the only primvar of colours, at the corners: [C, 4] linear."""
        others = [n for n, p in primvars.items() if str(p.GetTypeName()).startswith("color") and n != "displayColor"]
        rows = primvar("displayColor")
        if rows is None and len(others) == 1:
            rows = primvar(others[0])
        if rows is None or rows.shape[1] < 3:
            return None
        if not np.isfinite(rows).all():
            raise ObjectError("some vertex colours are not finite numbers")
        opacity = primvar("displayOpacity")
        alpha = rows[:, 3:4] if rows.shape[1] > 3 else np.ones((len(rows), 1)) if opacity is None else opacity[:, :1]
        return np.hstack([rows[:, :3], alpha]).clip(0, 1)

    # --- materials ---

    def surface(self, material: Any) -> _Surface | None:
        if not material:
            return None
        name = str(material.GetPath())
        if name not in self.surfaces:
            shader = material.ComputeSurfaceSource()[0]
            self.surfaces[name] = self.preview(shader) if shader else _Surface(self.neutral)
        return self.surfaces[name]

    def preview(self, shader: Any) -> _Surface:
        if shader.GetIdAttr().Get() != "UsdPreviewSurface":
            return _Surface(self.neutral)

        def number(name: str, default: Any) -> Any:
            value = self.produced(shader, name)
            return default if value is None or hasattr(value, "GetIdAttr") else value

        source = self.produced(shader, "diffuseColor")
        opacity = float(np.clip(number("opacity", 1.0), 0, 1))
        opacity = opacity if opacity > 0 else 1.0
        threshold = float(number("opacityThreshold", 0.0))
        color = tuple(np.clip(np.array(number("diffuseColor", (0.18, 0.18, 0.18)), float), 0, 1).tolist())
        glow = tuple(np.clip(np.array(number("emissiveColor", (0, 0, 0)), float), 0, 1).tolist())
        mode: AlphaMode = "BLEND" if opacity < 1 else "OPAQUE"
        if source is None or not hasattr(source, "GetIdAttr"):
            glow = glow if max(color) == 0 else (0.0, 0.0, 0.0)  # as in glTF here: it is ambient light elsewhere
            return _Surface(Material((*color, opacity), emissive_factor=glow, alpha_mode=mode))
        if source.GetIdAttr().Get() != "UsdUVTexture":  # a primvar reader
            return _Surface(Material((1.0, 1.0, 1.0, opacity), alpha_mode=mode))
        pixels = self.image(self.produced(source, "file"))
        masked = hasattr(self.produced(shader, "opacity"), "GetIdAttr")
        if masked and pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
            mode = "MASK" if threshold > 0 else "BLEND"
        wraps = [_WRAPS.get(str(self.produced(source, name)), "repeat") for name in ("wrapS", "wrapT")]
        primvar, layout = self.coordinates(self.produced(source, "st"))
        texture = Texture(pixels, wraps[0], wraps[1])
        material = Material((1.0, 1.0, 1.0, opacity), texture, alpha_mode=mode, alpha_cutoff=threshold or 0.5)
        return _Surface(material, primvar, layout, of_primvars=False)

    def produced(self, shader: Any, name: str) -> Any:
        """The value of an input, or the shader that gives it."""
        from pxr import UsdShade

        given = shader.GetInput(name)
        attributes = UsdShade.Utils.GetValueProducingAttributes(given) if given else ()
        for attribute in attributes:
            if UsdShade.Utils.GetType(attribute.GetName()) == UsdShade.AttributeType.Output:
                return UsdShade.Shader(attribute.GetPrim())
            return attribute.Get(self.time)
        return None

    def coordinates(self, reader: Any) -> tuple[str, Any]:
        """The primvar of texture coordinates, and its affine map."""
        layout = np.eye(3)
        for _ in range(10):
            if not hasattr(reader, "GetIdAttr"):
                break
            if reader.GetIdAttr().Get() != "UsdTransform2d":
                return str(self.produced(reader, "varname") or "st"), tuple(map(tuple, layout[:2].tolist()))
            angle = np.radians(float(self.produced(reader, "rotation") or 0))
            scale = np.array(self.produced(reader, "scale") or (1, 1), float)
            step = np.eye(3)
            step[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
            step[:2, 2] = self.produced(reader, "translation") or (0, 0)
            layout, reader = layout @ step, self.produced(reader, "in")
        return "st", tuple(map(tuple, layout[:2].tolist()))

    def image(self, asset: Any) -> np.ndarray:
        from pxr import Ar

        name, full = getattr(asset, "path", ""), getattr(asset, "resolvedPath", "")
        if name not in self.images:
            if full.startswith(f"{self.path}["):  # in the archive of a .usdz
                opened = Ar.GetResolver().OpenAsset(Ar.ResolvedPath(full))
                if opened is None:
                    raise ObjectError(f"it names {name[:100]!r}, which is missing from its archive")
                self.images[name] = decode_image(bytes(opened.GetBuffer()), name, self.folder.max_texture_pixels)
            else:
                self.images[name] = self.folder.image(name)
        return self.images[name]
