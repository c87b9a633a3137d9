"""Slow loops written from the paper's equations and the authors' order of operations, one image at a time."""

import math

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF


def cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


def pair_loss(anchor, positive, others, temperature):
    """Eq. 2 (and eq. 5 for columns), without the pair of a vector with itself, as in the authors' code."""
    others = torch.stack([cosine(anchor, other) for other in others])
    return (others / temperature).logsumexp(0) - cosine(anchor, positive) / temperature


def instance_loss(a, b, temperature):
    """Eq. 3: the mean of both directions over all pairs."""
    m, both, loss = len(a), [*a, *b], 0
    for i in range(2 * m):
        others = [both[j] for j in range(2 * m) if j != i]
        loss = loss + pair_loss(both[i], both[(i + m) % (2 * m)], others, temperature)
    return loss / (2 * m)


def cluster_loss(p_a, p_b, temperature, entropy_weight=1.0):
    """Eqs. 4 to 6, with the entropy counted from log K in each view."""
    k = p_a.shape[1]
    loss = instance_loss([p_a[:, i] for i in range(k)], [p_b[:, i] for i in range(k)], temperature)
    for p in (p_a, p_b):
        share = [p[:, i].sum() / p.sum() for i in range(k)]
        loss = loss + entropy_weight * (math.log(k) + sum(s * torch.log(s) for s in share))
    return loss


def augment(image, parameters, i, size):
    """torchvision's functionals with the parameters of view i, in the authors' order.

    image: a tensor in [0, 1] (C, H, W) → (C, S, S), or a PIL image → a PIL image, as in the authors' code.
    """
    x = TF.resized_crop(image, *(int(v) for v in parameters.box[i]), [size, size], antialias=True)
    if parameters.flip[i]:
        x = TF.hflip(x)
    if parameters.affine is not None:
        angle, *shift_and_shear = parameters.affine[i].tolist()
        shift, shear = shift_and_shear[:2], shift_and_shear[2:]
        x = TF.affine(x, angle, shift, 1.0, shear, interpolation=InterpolationMode.BILINEAR)
    if parameters.jitter[i]:
        operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for number in parameters.order[i].tolist():
            x = operations[number](x, float(parameters.factors[i, number]))
    if parameters.grayscale[i]:
        x = TF.rgb_to_grayscale(x, num_output_channels=TF.get_dimensions(x)[0])
    if parameters.sigma is not None and parameters.sigma[i] > 0:
        x = TF.gaussian_blur(x, 23, float(parameters.sigma[i]))
    return x
