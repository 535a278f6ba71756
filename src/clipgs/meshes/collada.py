"""Reads COLLADA, .dae, as the parts of a mesh.

A package exists (pycollada), but it cuts concave polygons wrongly, ignores the stride and offset of sources and the
unit and axis of the file, and follows nodes that contain themselves without end.

Colours are display colours (sRGB), as programs write them. Of transparency there are four definitions, and programs mix
them up: only a number between 0 and 1 counts, and a material whose colour would be invisible is opaque.

Method: Khronos COLLADA 1.4.1 specification; 1.5 has the same elements.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from clipgs.catalog.named_files import file_of_uri
from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder
from clipgs.meshes.gltf import transformed
from clipgs.meshes.markup import Element, parse
from clipgs.meshes.materials import AlphaMode, Material, Part, Texture, Wrap, srgb_to_linear
from clipgs.meshes.polygons import check_corners, check_face_count, triangulate

# Rows: the axes of the result (Y up) in those of the file.
_AXES = {
    "X_UP": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
    "Y_UP": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "Z_UP": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
}
_WRAPS: dict[str, Wrap] = {"WRAP": "repeat", "MIRROR": "mirror", "CLAMP": "clamp", "BORDER": "clamp", "NONE": "clamp"}
_MOST_NODES = 200_000
_SHADERS = ("phong", "blinn", "lambert", "constant")


class _Map(NamedTuple):
    """A texture and the symbol of its coordinates."""

    texture: Texture
    symbol: str


class _Surface(NamedTuple):
    """A material, and the symbols of the coordinates of its textures."""

    material: Material
    base: str | None = None
    glow: str | None = None


class _Input(NamedTuple):
    """An attribute of the corners of a primitive."""

    semantic: str
    number: int  # of the set
    offset: int  # among a corner's indices
    values: np.ndarray  # [N, width]


class _Primitive(NamedTuple):
    """The polygons of a primitive as triangles."""

    inputs: list[_Input]
    indices: np.ndarray  # [C, width], of each corner
    faces: np.ndarray  # [F, 3], rows of `indices`


_Bound = dict[str, tuple[_Surface, dict[str, int]]]  # materials by symbol, and of each its sets by symbol


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """Parts of the file's scene, in metres with Y up (float64), one for each primitive of each node.

    A skinned mesh has the pose that its joints have in the file.

    Raises:
        ObjectError: the file is damaged, refers to another file than a picture, or has more than `max_faces` triangles.
    """
    with np.errstate(all="ignore"):  # numbers may be any, and what is not finite is refused later
        return list(_Document(parse(path.read_bytes()), folder, neutral, max_faces).parts())


class _Document:
    def __init__(self, root: Element, folder: Folder, neutral: Material, max_faces: int) -> None:
        if root.name != "COLLADA":
            raise ObjectError(f"it is not COLLADA: its XML begins with {root.name[:50]!r}")
        self.root, self.folder, self.neutral, self.max_faces = root, folder, neutral, max_faces
        self.by_id: dict[str, Element] = {}
        for element in root.walk():
            if "id" in element.attributes:
                self.by_id.setdefault(element.get("id"), element)
        self.sources: dict[str, np.ndarray] = {}
        self.images: dict[str, np.ndarray] = {}
        self.surfaces: dict[str, _Surface] = {}
        self.primitives: dict[Element, _Primitive] = {}
        self.face_count = 0

    def named(self, url: str) -> Element:
        """The element of a URL or an id."""
        before, _, name = url.rpartition("#")
        if before:
            raise ObjectError(f"it refers to {url[:100]!r}, a part of another file, which is not read")
        if name not in self.by_id:
            raise ObjectError(f"it refers to {url[:100]!r}, which it does not have")
        return self.by_id[name]

    # --- scene ---

    def parts(self) -> Iterator[Part]:
        axis = self.root.first("asset", "up_axis")
        unit = self.root.first("asset", "unit")
        name = "Y_UP" if axis is None else axis.text.strip().upper()
        if name not in _AXES:
            raise ObjectError(f"its up axis is {name[:50]!r}, not one of {', '.join(_AXES)}")
        metres = 1.0 if unit is None else float(_numbers(unit.get("meter", "1"))[0])
        frame = np.eye(4)
        frame[:3, :3] = np.array(_AXES[name]) * (metres if np.isfinite(metres) and metres > 0 else 1.0)

        instance = self.root.first("scene", "instance_visual_scene")
        scene = self.root.first("library_visual_scenes", "visual_scene")
        scene = scene if instance is None else self.named(instance.get("url"))
        if scene is None:  # a library of meshes: each is taken, untransformed
            for geometry in self.root.all("library_geometries", "geometry"):
                yield from self.geometry(geometry, {}, frame[None])
            return
        placed = list(self.placed(scene, frame))
        joints: dict[str, np.ndarray] = {}
        for node, matrix in reversed(placed):  # of several nodes with one name, the first counts
            joints |= dict.fromkeys((node.get("name"), node.get("id"), node.get("sid")), matrix)
        for node, matrix in placed:
            for child in node.children:
                if child.name in ("instance_geometry", "instance_controller") and not np.isfinite(matrix).all():
                    raise ObjectError("a node's transform is not finite, or is a lookat or a skew, which are not read")
                if child.name == "instance_geometry":
                    yield from self.geometry(self.named(child.get("url")), self.bound(child), matrix[None])
                elif child.name == "instance_controller":
                    yield from self.controller(self.named(child.get("url")), self.bound(child), matrix, joints)

    def placed(self, scene: Element, frame: np.ndarray) -> Iterator[tuple[Element, np.ndarray]]:
        """The nodes of a scene and their world matrices."""
        queue = [(node, frame) for node in reversed(list(scene.all("node")))]
        count = 0
        while queue:
            node, parent = queue.pop()
            count += 1
            if count > _MOST_NODES:  # nodes may contain themselves, or be shared by nodes that are shared
                raise ObjectError(f"its scene has more nodes than the limit of {_MOST_NODES}")
            matrix = parent @ _local_matrix(node)
            yield node, matrix
            below = [
                self.named(child.get("url")) if child.name == "instance_node" else child
                for child in node.children
                if child.name in ("node", "instance_node")
            ]
            queue.extend((child, matrix) for child in reversed(below))

    def bound(self, instance: Element) -> _Bound:
        """The materials of an instance."""
        bound = {}
        for each in instance.all("bind_material", "technique_common", "instance_material"):
            sets = {
                bind.get("semantic"): int(bind.get("input_set", "0"))
                for bind in each.all("bind_vertex_input")
                if bind.get("input_semantic", "TEXCOORD") == "TEXCOORD"
            }
            bound[each.get("symbol")] = self.surface(each.get("target")), sets
        return bound

    def controller(
        self,
        controller: Element,
        bound: _Bound,
        matrix: np.ndarray,  # [4, 4]
        joints: dict[str, np.ndarray],  # world matrices by name
    ) -> Iterator[Part]:
        skin = controller.first("skin")
        geometry, moves = self.shape(controller)
        if skin is None:
            yield from self.geometry(geometry, bound, matrix[None], moves)
            return
        shape = skin.first("bind_shape_matrix")
        bind = np.eye(4) if shape is None else _numbers(shape.text).reshape(4, 4)
        inputs = {each.get("semantic"): self.named(each.get("source")) for each in skin.all("joints", "input")}
        if "JOINT" not in inputs or "INV_BIND_MATRIX" not in inputs:
            raise ObjectError("one of its skins has no joints")
        names = _words(inputs["JOINT"])
        inverse = self.source(inputs["INV_BIND_MATRIX"]).reshape(-1, 4, 4)
        if len(inverse) < len(names):
            raise ObjectError(f"one of its skins has {len(names)} joints but {len(inverse)} matrices")
        if not all(name in joints for name in names):  # a skeleton that is not in the scene: the shape as it was bound
            yield from self.geometry(geometry, bound, (matrix @ bind)[None], moves)
            return
        world = np.stack([joints[name] for name in names]) @ inverse[: len(names)] @ bind
        weights = skin.first("vertex_weights")
        stored = {each.get("semantic"): each for each in skin.all("vertex_weights", "input")}
        counts, pairs = (None, None) if weights is None else (weights.first("vcount"), weights.first("v"))
        if counts is None or pairs is None or "WEIGHT" not in stored or "JOINT" not in stored:
            raise ObjectError("one of its skins has no weights")
        of_vertex = _integers(counts.text)
        width = max(int(each.get("offset", "0")) for each in skin.all("vertex_weights", "input")) + 1
        rows = _integers(pairs.text).reshape(-1, width)
        values = self.source(self.named(stored["WEIGHT"].get("source")))[:, 0]
        joint, weight = (rows[:, int(stored[name].get("offset", "0"))] for name in ("JOINT", "WEIGHT"))
        if (of_vertex < 0).any() or of_vertex.sum() != len(rows):
            raise ObjectError(f"one of its skins has {len(rows)} weights where {of_vertex.sum()} are needed")
        check_corners(weight, len(values))
        vertex = np.repeat(np.arange(len(of_vertex)), of_vertex)
        total = np.zeros(len(of_vertex))
        np.add.at(total, vertex, values[weight])
        matrices = np.zeros((len(of_vertex), 4, 4))
        # The joint -1 is the bind shape itself.
        of_joint = np.concatenate([world, (matrix @ bind)[None]])
        check_corners(joint + (joint < 0), len(of_joint) - 1)
        np.add.at(matrices, vertex, (values[weight] / total[vertex].clip(1e-12))[:, None, None] * of_joint[joint])
        matrices[total <= 0] = matrix @ bind
        yield from self.geometry(geometry, bound, matrices, moves)

    def shape(self, controller: Element) -> tuple[Element, np.ndarray | None]:
        """The geometry below a controller, and how its morph moves the positions [V, 3] by the weights in the file."""
        moves = None
        for _ in range(3):  # a skin over a morph, or the reverse, over a geometry
            if controller.name != "controller":
                return controller, moves
            for kind in ("skin", "morph"):
                each = controller.first(kind)
                if each is not None:
                    controller = self.named(each.get("source"))
                    moves = moves if kind == "skin" else self.moves(each, controller)
                    break
        raise ObjectError("one of its controllers is over more than one other, or over none")

    def moves(self, morph: Element, base: Element) -> np.ndarray | None:
        inputs = {each.get("semantic"): self.named(each.get("source")) for each in morph.all("targets", "input")}
        if "MORPH_TARGET" not in inputs or "MORPH_WEIGHT" not in inputs:
            return None
        moves: np.ndarray | None = None
        for name, weight in zip(
            _words(inputs["MORPH_TARGET"]), self.source(inputs["MORPH_WEIGHT"])[:, 0], strict=False
        ):
            if weight:
                target, rest = self.positions(self.named(name)), self.positions(base)
                if target.shape != rest.shape:
                    raise ObjectError(f"a morph target has {len(target)} positions for {len(rest)}")
                change = weight * (target if morph.get("method") == "RELATIVE" else target - rest)
                moves = change if moves is None else moves + change
        return moves

    def positions(self, geometry: Element) -> np.ndarray:
        for each in geometry.all("mesh", "vertices", "input"):
            if each.get("semantic") == "POSITION":
                return self.source(self.named(each.get("source")))
        raise ObjectError("one of its geometries has no positions")

    # --- geometry ---

    def source(self, element: Element) -> np.ndarray:
        """The values of a source, [count, width]."""
        name = element.get("id")
        if name not in self.sources:
            accessor, numbers = element.first("technique_common", "accessor"), element.first("float_array")
            if numbers is None and accessor is not None:
                numbers = self.named(accessor.get("source"))
            if numbers is None:
                raise ObjectError(f"its source {name[:50]!r} has no numbers")
            values = _numbers(numbers.text)
            if accessor is None:
                return values[:, None]
            stride, offset = (int(accessor.get(key, default)) for key, default in (("stride", "1"), ("offset", "0")))
            count = int(accessor.get("count", "0"))
            # Parameters without a name are skipped. Some writers leave out all names; one alone may be a whole matrix.
            parameters = list(accessor.all("param"))
            named = [i for i, each in enumerate(parameters) if each.get("name")]
            columns = named if named and len(parameters) > 1 else list(range(stride))
            if stride < 1 or offset < 0 or count < 0 or columns[-1] >= stride:
                raise ObjectError(f"its source {name[:50]!r} has a stride of {stride} for {len(parameters)} parameters")
            if offset + count * stride > len(values):
                needed = offset + count * stride
                raise ObjectError(f"its source {name[:50]!r} has {len(values)} numbers instead of {needed}")
            self.sources[name] = values[offset : offset + count * stride].reshape(count, stride)[:, columns]
        return self.sources[name]

    def inputs(self, primitive: Element) -> list[_Input]:
        found = []
        for each in primitive.all("input"):
            source, offset = self.named(each.get("source")), int(each.get("offset", "0"))
            if offset < 0:
                raise ObjectError(f"one of its inputs has the offset {offset}")
            # The input VERTEX stands for all those of the element <vertices>.
            for own in source.all("input") if source.name == "vertices" else (each,):
                semantic, number = own.get("semantic"), int(own.get("set", each.get("set", "0")))
                if semantic in ("POSITION", "NORMAL", "TEXCOORD", "COLOR"):
                    found.append(_Input(semantic, number, offset, self.source(self.named(own.get("source")))))
        return found

    def geometry(
        self,
        geometry: Element,
        bound: _Bound,
        matrices: np.ndarray,  # [1 or V, 4, 4]
        moves: np.ndarray | None = None,  # [V, 3]
    ) -> Iterator[Part]:
        for mesh in geometry.all("mesh"):
            for each in mesh.children:
                if each not in self.primitives:  # instances share one primitive
                    self.primitives[each] = self.primitive(each)
                primitive = self.primitives[each]
                self.face_count += len(primitive.faces)
                check_face_count(self.face_count, self.max_faces)
                if not len(primitive.faces):
                    continue
                symbol = each.get("material")
                surface, sets = bound.get(symbol, (None, {}))
                if surface is None and symbol in self.by_id and self.by_id[symbol].name == "material":
                    surface = self.surface(symbol)  # a symbol that nothing binds, but that is a material's name
                yield self.part(primitive, surface, sets, matrices, moves)

    def primitive(self, element: Element) -> _Primitive:
        """A primitive without faces for points, lines and other elements."""
        flat, sizes = _polygons(element)
        check_face_count(int((sizes - 2).clip(0).sum()), self.max_faces)
        width = _width(element)
        if sizes.min(initial=1) < 0 or sizes.sum() * width != len(flat):
            raise ObjectError(f"a primitive has {len(flat)} indices for {sizes.sum()} corners of {width}")
        indices = flat.reshape(-1, width)
        inputs = self.inputs(element) if len(indices) else []
        position = next((each for each in inputs if each.semantic == "POSITION"), None)
        if position is None:
            return _Primitive([], indices, np.zeros((0, 3), np.int64))
        if position.values.shape[1] != 3:
            raise ObjectError(f"its positions have {position.values.shape[1]} coordinates")
        for each in inputs:
            check_corners(indices[:, each.offset], len(each.values))
        faces, _ = triangulate(position.values, indices[:, position.offset], sizes)
        if width == 1 and len({len(each.values) for each in inputs}) == 1:  # corners share their vertices
            return _Primitive(inputs, np.arange(len(position.values))[:, None], indices[:, 0][faces])
        return _Primitive(inputs, indices, faces)

    def part(
        self,
        primitive: _Primitive,
        surface: _Surface | None,
        sets: dict[str, int],
        matrices: np.ndarray,  # [1 or V, 4, 4]
        moves: np.ndarray | None,  # [V, 3]
    ) -> Part:
        inputs, indices, faces = primitive
        position = next(each for each in inputs if each.semantic == "POSITION")
        corners, positions = indices[:, position.offset], position.values
        if moves is not None and len(moves) == len(positions):
            positions = positions + moves
        if len(matrices) > 1:
            if len(matrices) < len(positions):
                raise ObjectError(f"a skin has weights of {len(matrices)} vertices for {len(positions)}")
            matrices = matrices[corners]

        def at_corners(each: _Input | None, columns: int) -> np.ndarray | None:
            return None if each is None or each.values.shape[1] < columns else each.values[indices[:, each.offset]]

        def coordinates(symbol: str | None) -> np.ndarray | None:
            """Of the set that is bound to a symbol; else of the first."""
            uvs = [each for each in inputs if each.semantic == "TEXCOORD"]
            if symbol is None or not uvs:
                return None
            number = sets.get(symbol)
            uv = at_corners(next((each for each in uvs if each.number == number), uvs[0]), 2)
            return None if uv is None else uv[:, :2] * (1, -1) + (0, 1)

        colors = at_corners(next((each for each in inputs if each.semantic == "COLOR"), None), 3)
        if colors is not None:
            if not np.isfinite(colors).all():
                raise ObjectError("some vertex colours are not finite numbers")
            alpha = colors[:, 3:4].clip(0, 1) if colors.shape[1] > 3 else np.ones((len(colors), 1))
            colors = np.hstack([srgb_to_linear(colors[:, :3].clip(0, 1)), alpha])
        if surface is None:
            surface = _Surface(self.neutral if colors is None else Material())
        material = surface.material
        if colors is not None and material.base_color_texture is not None and not colors[:, :3].any():
            colors = None  # some programs write zeros for colours that they do not have
        if colors is not None and material.base_color_texture is None:
            # What stands beside vertex colours is any value: programs write their default there.
            material = replace(material, base_color_factor=(1.0, 1.0, 1.0, material.base_color_factor[3]))
        uv, glow_uv = coordinates(surface.base), coordinates(surface.glow)
        return transformed(
            Part(
                vertices=positions[corners],
                faces=faces,
                normals=at_corners(next((each for each in inputs if each.semantic == "NORMAL"), None), 3),
                uv=glow_uv if uv is None else uv,
                colors=colors,
                material=material,
                glow_uv=None if uv is None or surface.glow == surface.base else glow_uv,
            ),
            matrices,
        )

    # --- materials ---

    def surface(self, url: str) -> _Surface:
        if url not in self.surfaces:
            # As in OBJ, a material that is not there gives no colour.
            described = self.by_id.get(url.rpartition("#")[2])
            instance = None if described is None else described.first("instance_effect")
            self.surfaces[url] = (
                _Surface(self.neutral) if instance is None else self.effect(self.named(instance.get("url")))
            )
        return self.surfaces[url]

    def effect(self, effect: Element) -> _Surface:
        profile = effect.first("profile_COMMON")
        if profile is None:
            return _Surface(self.neutral)
        shader = next((s for t in profile.all("technique") for name in _SHADERS for s in t.all(name)), None)
        if shader is None:
            return _Surface(self.neutral)
        params = {p.get("sid"): p for owner in (effect, profile) for p in owner.all("newparam")}
        params |= {p.get("sid"): p for t in profile.all("technique") for p in t.all("newparam")}
        # A constant shader has no diffuse colour: what it shows is its emission.
        unlit = shader.name == "constant"
        color, base = self.colored(shader.first("diffuse"), params)
        glow_color, glow = self.colored(shader.first("emission"), params)
        if unlit and color is None and base is None:
            color, base, glow_color, glow = glow_color, glow, None, None
        if color is None and base is None and glow_color is None and glow is None:
            return _Surface(self.neutral)
        opacity, mode = self.opacity(shader, params, base)
        black = np.zeros(4)
        shown = np.ones(4) if base is not None else black if color is None else color
        emitted = np.ones(4) if glow is not None else black if glow_color is None else glow_color
        # As in glTF here: a glow without texture counts only where the colour is black, since it is ambient light.
        if glow is None and (base is not None or shown[:3].max() > 0):
            emitted = black
        return _Surface(
            Material(
                base_color_factor=(*srgb_to_linear(shown[:3]).tolist(), opacity),
                base_color_texture=None if base is None else base.texture,
                emissive_factor=tuple(srgb_to_linear(emitted[:3]).tolist()),
                emissive_texture=None if glow is None else glow.texture,
                alpha_mode=mode,
                unlit=unlit,
            ),
            None if base is None else base.symbol,
            None if glow is None else glow.symbol,
        )

    def colored(self, element: Element | None, params: dict[str, Element]) -> tuple[np.ndarray | None, "_Map | None"]:
        """The colour [4] and the texture of a property of a shader."""
        if element is None:
            return None, None
        texture, color, param = element.first("texture"), element.first("color"), element.first("param")
        if param is not None and param.get("ref") in params:
            color = params[param.get("ref")].first("float4") or params[param.get("ref")].first("float3")
        mapped = None if texture is None else self.map(texture, params)
        if color is None:
            return None, mapped
        numbers = _numbers(color.text)
        if len(numbers) not in (3, 4) or not np.isfinite(numbers).all():
            raise ObjectError(f"a material has a colour of {len(numbers)} numbers")
        return np.append(numbers, 1.0)[:4].clip(0, 1), mapped

    def map(self, texture: Element, params: dict[str, Element]) -> _Map | None:
        """The picture of a texture: by a sampler and its surface or, as many programs write it, by its own id."""
        name = texture.get("texture")
        wraps: tuple[Wrap, Wrap] = ("repeat", "repeat")
        sampler = params[name].first("sampler2D") if name in params else None
        if sampler is not None:
            modes = [sampler.first(key) for key in ("wrap_s", "wrap_t")]
            wrap_u, wrap_v = ("WRAP" if mode is None else mode.text.strip().upper() for mode in modes)
            wraps = _WRAPS.get(wrap_u, "repeat"), _WRAPS.get(wrap_v, "repeat")
            source, instance = sampler.first("source"), sampler.first("instance_image")
            name = source.text.strip() if source is not None else instance.get("url") if instance is not None else name
        surface = params[name].first("surface") if name in params else None
        if surface is not None:
            start = surface.first("init_from")
            name = "" if start is None else start.text.strip()
        image = self.by_id.get(name.rpartition("#")[2])
        if image is None or image.name != "image":
            raise ObjectError(f"a texture refers to the picture {name[:100]!r}, which it does not have")
        return _Map(Texture(self.image(image), *wraps), texture.get("texcoord"))

    def image(self, image: Element) -> np.ndarray:
        name = image.get("id")
        if name not in self.images:
            start = image.first("init_from")
            reference = None if start is None else start.first("ref")  # COLLADA 1.5
            uri = "" if start is None else (start if reference is None else reference).text.strip()
            if not uri:
                raise ObjectError(f"its picture {name[:50]!r} names no file")
            file = file_of_uri(uri)
            self.images[name] = self.folder.image(unquote(file), file)
        return self.images[name]

    def opacity(self, shader: Element, params: dict[str, Element], base: _Map | None) -> tuple[float, AlphaMode]:
        transparent, amount = shader.first("transparent"), shader.first("transparency", "float")
        color, mapped = self.colored(transparent, params)
        factor = 1.0 if amount is None else float(amount.text)
        if mapped is not None:
            # The picture of the colour again, as a rule, whose alpha counts. Another one is not read.
            same = base is not None and mapped.texture.pixels is base.texture.pixels
            holes = same and mapped.texture.pixels.shape[2] == 4 and mapped.texture.pixels[..., 3].min() < 255
            return 1.0, "MASK" if holes else "OPAQUE"
        mode = "A_ONE" if transparent is None else transparent.get("opaque", "A_ONE")
        if color is None:
            opacity = factor
        elif mode.startswith("RGB"):
            opacity = float(color[:3].mean() * factor)
        else:
            opacity = float(color[3] * factor)
        if mode.endswith("ZERO"):
            opacity = 1 - opacity
        return (opacity, "BLEND") if 0 < opacity < 1 else (1.0, "OPAQUE")


def _polygons(primitive: Element) -> tuple[np.ndarray, np.ndarray]:
    """The indices [I] and the number of corners of each polygon [P]; none of points, lines and other elements."""
    kind = primitive.name
    if kind in ("triangles", "polylist"):
        first = primitive.first("p")
        indices = _integers("" if first is None else first.text)
        counts = primitive.first("vcount")
        if kind == "polylist":
            return indices, _integers("" if counts is None else counts.text)
        width = _width(primitive)
        return indices[: len(indices) // (3 * width) * 3 * width], np.full(len(indices) // (3 * width), 3)
    if kind not in ("polygons", "tristrips", "trifans"):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if primitive.first("ph") is not None:
        raise ObjectError("some of its polygons have holes, which are not read")
    width = _width(primitive)
    words = [each.text.split() for each in primitive.all("p")]
    lengths = np.array([len(run) for run in words], np.int64)
    if (lengths % width).any():
        raise ObjectError(f"a primitive has a number of indices that is not a multiple of {width}")
    indices = np.array([word for run in words for word in run], np.int64)  # at once: there may be one run a face
    if kind == "polygons":
        return indices, lengths // width
    runs = np.split(indices, np.cumsum(lengths)[:-1]) if words else []
    runs = [_triangles(run.reshape(-1, width), strip=kind == "tristrips") for run in runs]
    indices = np.concatenate([np.zeros(0, np.int64), *runs])
    return indices, np.full(len(indices) // (3 * width), 3)


def _width(primitive: Element) -> int:
    """Indices of a corner."""
    return max((int(each.get("offset", "0")) for each in primitive.all("input")), default=0) + 1


def _triangles(
    corners: np.ndarray,  # [C, width]
    *,
    strip: bool,
) -> np.ndarray:
    """The indices of a strip or a fan as separate triangles, flat."""
    if len(corners) < 3:
        return np.zeros(0, np.int64)
    faces = np.stack(
        [corners[:-2] if strip else np.repeat(corners[:1], len(corners) - 2, 0), corners[1:-1], corners[2:]]
    )
    if strip:
        faces[:2, 1::2] = faces[1::-1, 1::2]
    return faces.transpose(1, 0, 2).reshape(-1)


def _local_matrix(node: Element) -> np.ndarray:
    """The transforms of a node in their order."""
    matrix = np.eye(4)
    for child in node.children:
        if child.name not in ("matrix", "translate", "rotate", "scale", "lookat", "skew"):
            continue
        numbers, step = _numbers(child.text), np.eye(4)
        if child.name == "matrix" and len(numbers) == 16:
            step = numbers.reshape(4, 4)
        elif child.name == "translate" and len(numbers) == 3:
            step[:3, 3] = numbers
        elif child.name == "scale" and len(numbers) == 3:
            step[:3, :3] = np.diag(numbers)
        elif child.name == "rotate" and len(numbers) == 4:
            step[:3, :3] = _rotation(numbers[:3], np.radians(numbers[3]))
        else:  # of a camera, mostly, which is not read; a mesh there is refused
            step = np.full((4, 4), np.nan)
        matrix = matrix @ step
    return matrix


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    length = np.linalg.norm(axis)
    if length == 0:
        return np.eye(3)
    x, y, z = axis / length
    across = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) * across @ across


def _numbers(text: str) -> np.ndarray:
    try:
        return np.array(text.split(), np.float64)
    except ValueError:  # some exporters write numbers as their user's language does
        return np.array(text.replace(",", ".").split(), np.float64)


def _integers(text: str) -> np.ndarray:
    return np.array(text.split(), np.int64)


def _words(source: Element) -> list[str]:
    """The names in a source of joints."""
    for name in ("Name_array", "IDREF_array", "SIDREF_array"):
        names = source.first(name)
        if names is not None:
            return names.text.split()
    raise ObjectError("one of its skins has joints without names")
