import numpy as np

from clipgs.meshes import agreement, points
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES, QUAD, QUAD_FACES, QUAD_UV


def test_points_and_pictures_of_one_object_agree(glb, loaded):
    fine = (255 * np.random.default_rng(0).integers(0, 2, (64, 64, 1), dtype=np.uint8)).repeat(3, axis=2)
    textured = glb.material(texture=glb.texture(fine), doubleSided=True)
    glb.node(glb.mesh(QUAD, QUAD_FACES, material=textured, TEXCOORD_0=QUAD_UV))
    glb.node(glb.mesh(material=glb.material(factor=(0.1, 0.4, 0.8, 1))), translation=[3, 0, 0])
    assert agreement.apart(loaded(glb), 0) is None


def test_a_shell_that_only_pictures_see_through(glb, loaded):
    """No splat can hold it: a black shell, seen from its inside alone, around a red cube."""
    glb.node(glb.mesh(material=glb.material(factor=(1, 0, 0, 1))))
    shell = glb.mesh(CUBE_CORNERS * np.float32(1.05), CUBE_FACES[:, ::-1], material=glb.material(factor=(0, 0, 0, 1)))
    glb.node(shell)
    assert "mean colour by" in agreement.apart(loaded(glb), 0)


def test_what_is_seen_through_glass(glb, loaded):
    """A pixel shows several points of its ray, and the nearest is of the glass."""
    glb.node(glb.mesh(material=glb.material(factor=(1, 0, 0, 1))))
    glass = glb.material(factor=(0, 0, 1, 0.1), alphaMode="BLEND")
    glb.node(glb.mesh(CUBE_CORNERS * np.float32(1.2), material=glass))
    assert agreement.apart(loaded(glb), 0) is None


def test_points_that_miss_a_part(glb, loaded, monkeypatch):
    for x in (-3, 0, 3):
        glb.node(glb.mesh(), translation=[x, 0, 0])
    mesh = loaded(glb)

    def left_alone(mesh, count, seed):
        xyz, rgb, normals = points.sample(mesh, count, seed)
        kept = xyz[:, 0] < 0.2
        return xyz[kept], rgb[kept], normals[kept]

    monkeypatch.setattr(agreement, "sample", left_alone)
    assert "outline by" in agreement.apart(mesh, 0)
