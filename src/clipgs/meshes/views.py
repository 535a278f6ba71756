"""Posed views of a mesh, drawn by OpenGL."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipgs import config
from clipgs.core.errors import ObjectError
from clipgs.meshes import cameras
from clipgs.meshes.headless import context
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import AlphaMode, Part, Texture, linear_to_srgb, srgb_to_linear, with_alpha

# Light on a matt surface, as a fraction of white. The lights are fixed in the world, because Gaussians without view
# dependence cannot have colours that follow the camera. Their sum is at most 1 in every direction, so that white never
# clips. The darkest side gets AMBIENT, which sRGB encodes as 0.76 of white.
AMBIENT = 0.54
LIGHTS: tuple[tuple[tuple[float, float, float], float], ...] = (  # direction to the light, strength
    ((1.0, 1.5, 1.0), 0.41),
    ((-1.0, 0.8, -1.2), 0.34),
    ((0.0, -1.0, 0.3), 0.22),
)

_SHADERS = Path(__file__).parent / "shaders"
_SAMPLES = 4  # a pixel
_CORNER_PIXELS = 4  # along one edge of the frame
_VISIBLE_ALPHA = 26  # of 255; an object with less alpha everywhere is invisible
_SOLID = 0.996  # alpha from which what blends hides what is behind it, as eight bits have it
_BEHIND_TWIN = 1e-5  # of the depth range; a back loses to a front at the same place, and to no other
_BEHIND_ALL = 1.0  # fronts have half of the depth range, and backs of single-sided materials the other half
_MOST_RUNS = 256  # of triangles of one part in an order from far to near
_SRGB8_ALPHA8 = 0x8C43


def render(
    mesh: Mesh,
    viewmats: np.ndarray,  # [V, 4, 4], world to camera, OpenCV
    Ks: np.ndarray,  # [V, 3, 3], pixels
    pixels: int,
    *,
    supersample: int = 1,
    ambient: float = AMBIENT,
    lights: Sequence[tuple[tuple[float, float, float], float]] = LIGHTS,
) -> np.ndarray:
    """Draws the mesh from every camera: uint8 [V, H, W, 4], sRGB with straight alpha, H = W = `pixels`.

    Each view is drawn `supersample` times as wide and as high, with four samples a pixel, and averaged. The background
    is transparent black, so an edge pixel is colour times coverage; divided by its alpha, it is right over any
    background.

    Faces are drawn and lit from both sides. Of a single-sided material (glTF 3.9.6) the back is seen only where no
    front lies on the ray: an inside-out shell does not hide what is in it, and a mesh with some faces wound the wrong
    way has no holes. Where a back and a front lie at one place, the front is seen, whatever the material. What blends
    is drawn from far to near, and hides nothing but where it is solid.

    Raises:
        ObjectError: the mesh reaches beyond the frame of a view.
    """
    viewmats, Ks = np.asarray(viewmats, np.float64), np.asarray(Ks, np.float64)
    _check_inside(mesh, viewmats, Ks, pixels)
    Ks = Ks * np.array([supersample, supersample, 1])[:, None]
    scene = _Scene(mesh, supersample * pixels, ambient, lights)
    views = []
    for viewmat, K in zip(viewmats, Ks, strict=True):
        average = _averaged(scene.draw(viewmat, K), supersample)
        views.append(_straight(average[..., :3], average[..., 3]))
    return np.stack(views)


def lit(
    rgb: np.ndarray,  # [P, 3] sRGB in [0, 1], of the material
    normals: np.ndarray,  # [P, 3] unit length
) -> np.ndarray:  # [P, 3] float32 sRGB in [0, 1]
    """The colours of a matt surface in the views: as the shader, without glow."""
    light = np.full(len(rgb), AMBIENT)
    for towards, strength in LIGHTS:
        light += strength * (normals @ (np.asarray(towards) / np.linalg.norm(towards))).clip(0)
    return linear_to_srgb((srgb_to_linear(rgb) * light[:, None]).clip(0, 1)).astype(np.float32)


def posed(mesh: Mesh, settings: config.Views) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The views that a splat is fitted to, then the held-out ones.

    Returns uint8 [V, H, W, 4] as `render`, viewmats [V, 4, 4] and Ks [V, 3, 3] (pixels).

    Raises:
        ObjectError: as `render` and `check`.
    """
    lens = (settings.fov_degrees, settings.distance, settings.pixels)
    canonical = cameras.canonical(settings.count, *lens)
    held_out = cameras.held_out(settings.held_out, *lens, among=settings.count)
    viewmats, Ks = (np.concatenate(pair) for pair in zip(canonical, held_out, strict=True))
    rgba = render(mesh, viewmats, Ks, settings.pixels, supersample=settings.supersample)
    check(rgba)
    return rgba, viewmats, Ks


def files(
    rgba: np.ndarray,  # [V, H, W, 4] uint8
    viewmats: np.ndarray,  # [V, 4, 4]
    Ks: np.ndarray,  # [V, 3, 3]
) -> list[tuple[str, bytes]]:
    """Name and bytes of each file of the views: cameras.json, then 000.png and so on."""
    found = [("cameras.json", cameras.cameras_json(viewmats, Ks, rgba.shape[1]))]
    for index, view in enumerate(rgba):
        buffer = io.BytesIO()
        Image.fromarray(view, "RGBA").save(buffer, "PNG", compress_level=1)
        found.append((f"{index:03d}.png", buffer.getvalue()))
    return found


def check(
    rgba: np.ndarray,  # [V, H, W, 4] uint8
) -> None:
    """Checks that a fit can learn from the views.

    A corner of the object may touch the edge of the frame, as a cube's does at the canonical distance. A longer run of
    pixels along the edge means that the object is cut off.

    Raises:
        ObjectError: the object is invisible in all views, or a view is blank or cut off by the frame.
    """
    alpha = rgba[..., 3]
    if alpha.max(initial=0) < _VISIBLE_ALPHA:
        raise ObjectError("it is invisible in every view: all its surfaces are transparent")
    for index, view in enumerate(alpha):
        if view.max() < _VISIBLE_ALPHA:
            raise ObjectError(f"view {index} is blank")
        edges = (view[0], view[-1], view[:, 0], view[:, -1])
        if max((edge >= 128).sum() for edge in edges) > _CORNER_PIXELS:
            raise ObjectError(f"view {index} is cut off by the edge of the frame")


def _check_inside(mesh: Mesh, viewmats: np.ndarray, Ks: np.ndarray, pixels: int) -> None:
    vertices = np.concatenate([part.vertices for part in mesh.parts]).astype(np.float64)
    box = np.stack([vertices.min(axis=0), vertices.max(axis=0)])
    corners = np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, 3)
    for index, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        # The corners of the box first: they nearly always fit.
        if not (_inside(corners, viewmat, K, pixels) or _inside(vertices, viewmat, K, pixels)):
            raise ObjectError(f"view {index} is cut off by the edge of the frame")


def _inside(points: np.ndarray, viewmat: np.ndarray, K: np.ndarray, pixels: int) -> bool:
    in_camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    if in_camera[:, 2].min() <= 0:
        return False
    in_frame = (in_camera @ K.T)[:, :2] / in_camera[:, 2:]
    return bool(in_frame.min() >= 0 and in_frame.max() <= pixels)


class _Drawn(NamedTuple):
    """A part in the graphics' memory."""

    part: Part
    mode: AlphaMode  # the part's, which takes a look at all its texels
    textures: dict[str, Any]  # by the names that the shader has for them
    indices: Any  # buffer of faces; of what blends, in the order of the view
    arrays: dict[tuple[str, ...], Any]  # a vertex array for each variant of the shader
    make: Callable[[tuple[str, ...]], Any]

    def array(self, *variant: str) -> Any:
        """The vertex array for the part's features and these of the pass."""
        if variant not in self.arrays:
            self.arrays[variant] = self.make(variant)
        return self.arrays[variant]


class _Scene:
    """A mesh in the graphics' memory, and the frames that it is drawn into."""

    def __init__(self, mesh: Mesh, side: int, ambient: float, lights: Sequence[tuple[Any, float]]) -> None:
        self.gl, self.ambient = context(), ambient
        self.lights = [(np.asarray(towards) / np.linalg.norm(towards), strength) for towards, strength in lights]
        size = (side, side)
        self.frame = self.gl.framebuffer(
            [self.gl.renderbuffer(size, 4, samples=_SAMPLES)], self.gl.depth_renderbuffer(size, samples=_SAMPLES)
        )
        self.resolved = self.gl.framebuffer([self.gl.renderbuffer(size, 4)])
        self.textures: dict[tuple[int, str, str, str, str], Any] = {}
        drawn = [self._uploaded(part) for part in mesh.parts]
        self.solid = [one for one in drawn if one.mode != "BLEND"]
        self.blended = [one for one in drawn if one.mode == "BLEND"]
        self.corners = [one.part.vertices[one.part.faces].mean(axis=1) for one in self.blended]  # [F, 3] a part
        # Where fronts lie on the ray, for backs that a front would not hide by itself.
        self.fronts = None
        if self.blended and any(one.part.material.single_sided for one in drawn):
            self.fronts = self.gl.framebuffer([self.gl.texture(size, 1)])

    def draw(self, viewmat: np.ndarray, K: np.ndarray) -> np.ndarray:
        """One view, colour times coverage, uint8 [H, W, 4]."""
        import moderngl

        gl, frame = self.gl, self.frame
        camera = self._camera(viewmat, K)
        if self.fronts is not None:
            self.fronts.use()
            self.fronts.clear()
            gl.enable_only(moderngl.CULL_FACE)
            gl.cull_face = "back"
            for one in (*self.solid, *self.blended):
                least = one.part.material.alpha_cutoff if one.mode == "MASK" else 1 / 255
                self._render(one, camera, "FRONTS", least_alpha=least)
            self.fronts.color_attachments[0].use(2)
        frame.use()
        frame.depth_mask = True
        frame.clear()
        gl.enable_only(moderngl.CULL_FACE | moderngl.DEPTH_TEST)
        for one in self.solid:
            self._sides(one, camera, one.part.material.alpha_cutoff)
        for one in self.blended:
            self._sides(one, camera, _SOLID)
        if self.blended:
            gl.enable(moderngl.BLEND)
            gl.blend_func = (
                moderngl.SRC_ALPHA,
                moderngl.ONE_MINUS_SRC_ALPHA,
                moderngl.ONE,
                moderngl.ONE_MINUS_SRC_ALPHA,
            )
            frame.depth_mask = False
            distances = [np.linalg.norm(corners - self._eye(viewmat), axis=1) for corners in self.corners]
            self._from_far_to_near(camera, distances, backs=True)
            self._from_far_to_near(camera, distances, backs=False)
            frame.depth_mask = True
        gl.copy_framebuffer(self.resolved, frame)
        data = self.resolved.read(components=4, alignment=1)
        return np.frombuffer(data, np.uint8).reshape(*self.resolved.size[::-1], 4)[::-1]

    def _sides(self, one: _Drawn, camera: dict[str, Any], least_alpha: float) -> None:
        self.gl.cull_face = "back"
        self._render(one, camera, least_alpha=least_alpha)
        self.gl.cull_face = "front"
        beside = ("BESIDE_FRONTS",) if one.part.material.single_sided and self.fronts is not None else ()
        back = _BEHIND_ALL if one.part.material.single_sided else _BEHIND_TWIN
        self._render(one, camera, *beside, least_alpha=least_alpha, back=back)

    def _from_far_to_near(self, camera: dict[str, Any], distances: list[np.ndarray], *, backs: bool) -> None:
        """Blends what blends: the backs that are seen beside fronts, or all else."""
        import moderngl

        chosen = [i for i, one in enumerate(self.blended) if one.part.material.single_sided or not backs]
        if not chosen:
            return
        owner = np.repeat(chosen, [len(distances[i]) for i in chosen])
        face = np.concatenate([np.arange(len(distances[i])) for i in chosen])
        distance = np.concatenate([distances[i] for i in chosen])
        order = np.argsort(-distance, kind="stable")
        if np.count_nonzero(np.diff(owner[order])) >= _MOST_RUNS:  # parts in turn, in slabs of equal depth
            slab = (distance - distance.min()) / max(np.ptp(distance), 1e-12) * (_MOST_RUNS // len(chosen))
            of_part = np.repeat([distances[i].mean() for i in chosen], [len(distances[i]) for i in chosen])
            order = np.lexsort((-distance, owner, -of_part, -np.floor(slab)))
        owner, face = owner[order], face[order]
        for i in chosen:
            one = self.blended[i]
            one.indices.write(np.ascontiguousarray(one.part.faces[face[owner == i]]))
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        drawn = dict.fromkeys(chosen, 0)
        for start, end in zip(starts, [*starts[1:], len(owner)], strict=True):
            one, count = self.blended[owner[start]], int(end - start)
            if one.part.material.single_sided:
                self.gl.enable(moderngl.CULL_FACE)
                self.gl.cull_face = "front" if backs else "back"
            else:
                self.gl.disable(moderngl.CULL_FACE)
            beside = ("BESIDE_FRONTS",) if backs and self.fronts is not None else ()
            run = {"vertices": 3 * count, "first": 3 * drawn[owner[start]]}
            self._render(one, camera, "BLENDS", *beside, back=_BEHIND_ALL if backs else 0.0, **run)
            drawn[owner[start]] += count

    def _render(self, one: _Drawn, camera: dict[str, Any], *variant: str, least_alpha: float = 0.0, back: float = 0.0,
                **run: int) -> None:  # fmt: skip
        material = one.part.material
        if one.mode != "OPAQUE" and least_alpha > 0:
            variant += ("CUTS",)
        array = one.array(*variant)
        program = array.program
        values = camera | {
            "base_color": material.base_color_factor,
            "emissive": material.emissive_factor,
            "least_alpha": least_alpha,
            "ambient": self.ambient,
            "back": back,
            "fronts": 2,
        }
        for name, value in values.items():
            if name in program:  # the compiler drops what a variant does not use
                program[name] = value
        for unit, (name, texture) in enumerate(one.textures.items()):
            if name in program:
                texture.use(unit)
                program[name] = unit
        array.render(**run)

    def _camera(self, viewmat: np.ndarray, K: np.ndarray) -> dict[str, Any]:
        """What a view sets: the camera as a matrix to clip space, columns first, and the lights."""
        side, distance = self.frame.size[0], float(np.linalg.norm(viewmat[:3, 3]))
        near, far = max(distance - 1.0, 0.01), distance + 1.0  # the mesh is within 0.87 of the origin
        projection = np.zeros((4, 4))
        projection[:2, :3] = 2 * K[:2] / side
        projection[:2, 2] -= 1
        projection[1] *= -1  # the frame's lowest row is the first one
        projection[2, 2:] = (far + near) / (far - near), -2 * far * near / (far - near)
        projection[3, 2] = 1
        values: dict[str, Any] = {
            "camera": tuple((projection @ viewmat).T.ravel()),
            "eye": tuple(self._eye(viewmat)),
        }
        if self.lights:
            values["light_directions"] = [tuple(towards) for towards, _ in self.lights]
            values["light_strengths"] = [strength for _, strength in self.lights]
        return values

    @staticmethod
    def _eye(viewmat: np.ndarray) -> np.ndarray:
        return -viewmat[:3, :3].T @ viewmat[:3, 3]

    def _uploaded(self, part: Part) -> _Drawn:
        gl, mode = self.gl, part.alpha_mode
        buffers: dict[str, tuple[str, np.ndarray]] = {"position": ("3f", part.vertices)}
        if part.normals is not None:
            buffers["normal"] = ("3f", part.normals)
        if part.colors is not None:
            buffers["color"] = ("4f", part.colors)
        textures = _textures(part)
        for name, uv, used in (("uv", part.uv, "base_texture"), ("glow_uv", part.glow_coordinates, "glow_texture")):
            if used in textures and uv is not None:
                buffers[name] = ("2f", uv * textures[used].mirror_scale)
        for texture in textures.values():
            if _key(texture) not in self.textures:
                self.textures[_key(texture)] = _uploaded_texture(gl, texture)
        content = [(gl.buffer(np.ascontiguousarray(values, np.float32)), kind, name)
                   for name, (kind, values) in buffers.items()]  # fmt: skip
        indices = gl.buffer(np.ascontiguousarray(part.faces, np.int32), dynamic=mode == "BLEND")
        features = [name for name, attribute in (("NORMALS", "normal"), ("COLORS", "color")) if attribute in buffers]
        features += [name.upper() for name in textures]
        features += ["UNLIT"] if part.material.unlit else []
        features += ["SHARP"] if mode == "MASK" else []

        lights = len(self.lights)

        def make(variant: tuple[str, ...]) -> Any:  # without `self`: a circle would keep the graphics' memory for long
            program = _program(gl, (*features, *variant), lights)
            used = [(buffer, kind, name) for buffer, kind, name in content if name in program]
            return gl.vertex_array(program, used, index_buffer=indices, index_element_size=4)

        uploaded = {name: self.textures[_key(texture)] for name, texture in textures.items()}
        return _Drawn(part, mode, uploaded, indices, {}, make)


@cache
def _program(gl: Any, features: tuple[str, ...], lights: int) -> Any:
    """The shader with these features, compiled once a process."""
    # What is cut out is looked up for every sample of a pixel, not once a pixel: its edges are those of the picture.
    sharp = "sample" if "SHARP" in features else ""
    head = [f"#version {400 if sharp else 330}", f"#define LIGHTS {max(lights, 1)}"]
    head += [f"#define FROM_VERTEX {sharp}", f"#define TO_FRAGMENT {sharp}"]
    head += [f"#define {feature}" for feature in features]
    texts = [(_SHADERS / f"mesh.{kind}").read_text() for kind in ("vert", "frag")]
    vertex, fragment = ("\n".join([*head, text]) for text in texts)
    return gl.program(vertex_shader=vertex, fragment_shader=fragment)


def _textures(part: Part) -> dict[str, Texture]:
    material = part.material
    pairs = {
        "base_texture": (material.base_color_texture, part.uv),
        "glow_texture": (material.emissive_texture, part.glow_coordinates),
    }
    return {name: texture for name, (texture, uv) in pairs.items() if texture is not None and uv is not None}


def _key(texture: Texture) -> tuple[int, str, str, str, str]:
    return id(texture.pixels), texture.wrap_u, texture.wrap_v, texture.magnify, texture.minify


def _uploaded_texture(gl: Any, texture: Texture) -> Any:
    """The texture as sRGB with alpha, which the graphics decode before they filter."""
    import moderngl

    pixels = with_alpha(texture.pixels)  # the standard has mip levels of sRGB only with alpha
    for axis, wrap in ((1, texture.wrap_u), (0, texture.wrap_v)):
        if wrap == "mirror":  # moderngl has no mirrored wrapping; see `Texture.mirror_scale`
            pixels = np.concatenate([pixels, np.flip(pixels, axis)], axis)
    made = gl.texture(pixels.shape[1::-1], 4, np.ascontiguousarray(pixels), internal_format=_SRGB8_ALPHA8)
    filters = {
        "nearest": moderngl.NEAREST,
        "linear": moderngl.LINEAR,
        "mipmaps": moderngl.LINEAR_MIPMAP_LINEAR,
    }
    if texture.minify == "mipmaps":
        made.build_mipmaps()
    made.filter = filters[texture.minify], filters[texture.magnify]
    made.repeat_x, made.repeat_y = texture.wrap_u != "clamp", texture.wrap_v != "clamp"
    return made


def _averaged(
    drawn: np.ndarray,  # [H * S, W * S, 4] uint8
    supersample: int,
) -> np.ndarray:
    """Means of S x S pixels: float32 [H, W, 4]."""
    height, width = (side // supersample for side in drawn.shape[:2])
    total = np.zeros((height, width, 4), np.uint16)
    for row in range(supersample):
        for column in range(supersample):
            total += drawn[row::supersample, column::supersample]
    return total.astype(np.float32) / supersample**2


def _straight(
    premultiplied: np.ndarray,  # [H, W, 3] float32 in 0..255
    alpha: np.ndarray,  # [H, W] float32 in 0..255
) -> np.ndarray:
    """Colour with straight alpha, uint8 [H, W, 4]; black where alpha is 0."""
    rounded = np.rint(alpha)
    color = premultiplied * (255 / np.maximum(alpha, 1e-3))[..., None]
    color = np.rint(color).clip(0, 255) * (rounded > 0)[..., None]
    return np.concatenate([color, rounded[..., None]], axis=-1).astype(np.uint8)
