"""Rows packed end to end · 首尾相接的打包

Instead of padding, a batch's rows are laid end to end. Return a dict of four lists:

    input_ids     all rows, one after the other
    labels        the rows' labels; each row's first is -100, since the token before it belongs to another row
    position_ids  every row counts from 0
    starts        where each row starts, and where the last one ends: attention stays between two of these

打包不用填充，把一批数据首尾相接。返回含四个列表的字典：input_ids 是各行依次相连；labels 是各行的标签，每行第一个为 -100，
因为它前面的 token 属于另一行；position_ids 每行从 0 数起；starts 是各行的起点和最后一行的终点：注意力不越过这些边界。

    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
"""


def pack(rows):
    """{"input_ids", "labels", "position_ids", "starts"} of rows with input_ids and labels."""
    # your code here
