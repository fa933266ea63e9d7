"""Photos that lie on their side · 躺着的照片

A phone saves the pixels as the sensor saw them, and in EXIF how to turn them for viewing: orientation 1 as they are, 6
turned clockwise by 90 degrees, 8 counter-clockwise by 90, 3 by 180. Many libraries ignore that. `pixels` is a numpy array
(height, width). Return the array that a person would see.

手机按传感器的方向保存像素，并在 EXIF 里写明观看时怎样旋转：1 不转，6 顺时针 90 度，8 逆时针 90 度，3 转 180 度。许多库不理会它。
`pixels` 是 numpy 数组（高, 宽）。返回人看到的数组。

    upright(numpy.array([[1, 2]]), 6)  ->  [[1], [2]]
"""

import numpy


def upright(pixels, orientation):
    """An array."""
    return numpy.rot90(pixels, {1: 0, 6: -1, 8: 1, 3: 2}[orientation])
