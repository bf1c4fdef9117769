import torch

from pipeline.models.clip.features import trim_padding


def test_padding_is_trimmed_and_the_end_token_is_kept():
    start, end, word = 8, 9, 1
    zero_padded = [[start, word, end, 0, 0, 0], [start, word, word, end, 0, 0]]
    assert trim_padding(torch.tensor(zero_padded))[:, :4].tolist() == [row[:4] for row in zero_padded]
    assert trim_padding(torch.tensor(zero_padded)).shape[1] < 6
    end_padded = [[start, end, end, end], [start, word, end, end]]
    assert trim_padding(torch.tensor(end_padded)).tolist() == [[start, end, end], [start, word, end]]
    unpadded = torch.tensor([[start, word, word, end], [start, end, 0, 0]])
    assert trim_padding(unpadded).equal(unpadded)
