import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import from_image, to_webp
from clipgs.splats.render import render


def front_camera(pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One camera [1, 4, 4] and [1, 3, 3] on the Z axis, that looks at the origin from a distance of 2."""
    viewmat = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    viewmat[2, 3] = 2
    K = torch.tensor([[pixels, 0, pixels / 2], [0, pixels, pixels / 2], [0, 0, 1.0]])
    return viewmat[None], K[None]


def red_dot(**changes) -> Gaussians:
    """A red Gaussian at the right and above of the middle."""
    tensors = {
        "means": torch.tensor([[0.5, 0.5, 0.0]]),
        "quats_wxyz": torch.tensor([[1.0, 0, 0, 0]]),
        "log_scales": torch.full((1, 3), math.log(0.1)),
        "opacity_logits": torch.tensor([8.0]),
        "colors": torch.tensor([[1.0, 0.0, 0.0]]),
    }
    return Gaussians(**(tensors | changes))


def test_where_and_what_colour():
    image = render(red_dot(), *front_camera(32), 32)[0]
    assert (image.shape, image.dtype) == ((32, 32, 3), torch.uint8)
    assert image[8, 24, 0] == 255  # up and right of the middle: half of 16 pixels each
    assert image[8, 24, 1:].max() < 30  # the middle lies between four pixels
    assert (image[24, 8] == 255).all()


def test_batch_and_padding_change_nothing():
    one = red_dot()
    two = Gaussians.stack([one, red_dot(means=-one.means, colors=1 - one.colors)])
    two = Gaussians(
        *(tensor.flatten(0, 1) for tensor in (two.means, two.quats_wxyz, two.log_scales)),
        opacity_logits=two.opacity_logits.flatten(),
        colors=two.colors.flatten(0, 1),
    )
    viewmats, Ks = front_camera(32)
    images = render(Gaussians.stack([red_dot(), two]), viewmats.expand(2, 1, 4, 4), Ks.expand(2, 1, 3, 3), 32)
    assert images.shape == (2, 1, 32, 32, 3)
    assert torch.equal(images[0], render(red_dot(), viewmats, Ks, 32))
    assert torch.equal(images[1], render(two, viewmats, Ks, 32))


def test_colours_outside_the_range_are_clamped():
    image = render(red_dot(colors=torch.tensor([[9.0, -9.0, 0.0]])), *front_camera(32), 32)[0]
    assert image[8, 24].tolist()[:2] == [255, 0]


def test_webp_is_close_small_and_the_same_every_time():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], np.uint8(90)), axis=-1)
    data = to_webp(image, 90)
    assert data == to_webp(image.copy(), 90)
    assert len(to_webp(image, 30)) < len(data) < image.nbytes / 10
    assert np.abs(from_image(data).astype(int) - image).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_pictures_of_every_mode_come_as_rgb_over_white(mode):
    source = Image.new("RGBA", (4, 4), (0, 0, 0, 0)) if mode in ("RGBA", "LA") else Image.new("RGB", (4, 4), "white")
    buffer = io.BytesIO()
    source.convert(mode).save(buffer, "PNG")
    image = from_image(buffer.getvalue())
    assert image.shape == (4, 4, 3)
    assert (image == 255).all()
