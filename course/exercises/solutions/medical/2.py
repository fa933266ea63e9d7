"""Bytes of a CSV file become text · CSV 文件的字节变成文本

`content` holds a file's bytes: UTF-8, UTF-8 with Excel's mark (BOM) in front, or GBK, as Excel in China saves. Return its
text, without the mark. Nothing may be lost and nothing turned into other characters.

`content` 是一个文件的字节：UTF-8、前面带 Excel 标记（BOM）的 UTF-8，或中文 Excel 存的 GBK。返回文本，不带标记。不能丢字，也不能变成别的字。

    read("发烧".encode("gb18030"))  ->  "发烧"
"""


def read(content):
    """A text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("gb18030")
