"""How many tokens is a photo? · 一张照片是多少个 token？

Qwen2.5-VL makes one token of each 28 x 28 pixels. First the photo is resized: each side to the nearest multiple of 28
(Python's round). If that has more than max_pixels pixels, both original sides are divided by sqrt(width height / max_pixels)
and rounded DOWN to multiples of 28 instead. All photos here are larger than 56 x 56.

Qwen2.5-VL 每 28 x 28 像素是一个 token。先缩放：每条边取最接近的 28 的倍数（Python 的 round）。如果像素数超过 max_pixels，则改为把两条
原始边长除以 sqrt(宽 x 高 / max_pixels)，再向下取到 28 的倍数。这里的照片都大于 56 x 56。

    image_tokens(560, 280, 10**6)  ->  200
"""

import math


def image_tokens(width, height, max_pixels):
    """A whole number."""
    columns, rows = round(width / 28), round(height / 28)
    if columns * rows * 28 * 28 > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        columns, rows = math.floor(width / scale / 28), math.floor(height / scale / 28)
    return columns * rows
