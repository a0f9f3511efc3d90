"""That tensors arrive on another device as they were."""

import torch
from on_device import moved


def test_views_keep_their_strides_and_share_memory():
    memory = torch.arange(40, dtype=torch.float32)
    rows, same = memory[3:39].view(4, 9)[:, 1:8], memory[4:]
    (arrived, [overlapping]), options = moved(((rows, [same]), {"other": torch.ones(2)}), "cpu")
    assert torch.equal(arrived, rows)
    assert arrived.stride() == rows.stride()
    assert arrived.storage_offset() == rows.storage_offset()
    assert arrived.data_ptr() != rows.data_ptr()
    overlapping[0] = -1
    assert arrived[0, 0] == -1
    assert rows[0, 0] == 4
    assert torch.equal(options["other"], torch.ones(2))


def test_what_is_no_tensor_stays():
    assert moved((1, None, "kl", [0.5, (True,)], torch.empty(0)), "cpu")[:4] == (1, None, "kl", [0.5, (True,)])
