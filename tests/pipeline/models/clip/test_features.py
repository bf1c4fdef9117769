import torch

from pipeline.models.clip.features import trim_padding


def test_filling_is_cut_off_and_never_an_end_token():
    start, end, word = 8, 9, 1
    by_zeros = [[start, word, end, 0, 0, 0], [start, word, word, end, 0, 0]]
    assert trim_padding(torch.tensor(by_zeros))[:, :4].tolist() == [row[:4] for row in by_zeros]
    assert trim_padding(torch.tensor(by_zeros)).shape[1] < 6
    by_ends = [[start, end, end, end], [start, word, end, end]]
    assert trim_padding(torch.tensor(by_ends)).tolist() == [[start, end, end], [start, word, end]]
    full = torch.tensor([[start, word, word, end], [start, end, 0, 0]])
    assert trim_padding(full).equal(full)
