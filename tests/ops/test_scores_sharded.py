"""A head sharded over two processes, as FSDP2 leaves it, gives the gradient that data parallelism averages."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from errata.ops.scores import Head, ModelStates, Streams, fused_loss

VOCABULARY, HIDDEN, TOKENS = 37, 6, 9


def data(rank):
    torch.manual_seed(100 + rank)
    hidden, teacher = torch.randn(2, 1, TOKENS, HIDDEN)
    return hidden, teacher, torch.randint(0, VOCABULARY, (1, TOKENS))


def loss_of(rank, weight, bias):
    hidden, teacher, tokens = data(rank)
    head = Head(weight, bias)
    ones = torch.ones(1, TOKENS)
    return fused_loss(ModelStates(hidden, head), ModelStates(teacher, head), tokens, Streams(ones, ones, ones))[0]


def parameters():
    torch.manual_seed(0)
    return torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    weight, bias = (distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in parameters())
    loss = loss_of(rank, weight, bias)
    loss.backward()
    torch.save((loss.detach(), weight.grad.full_tensor(), bias.grad.full_tensor()), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_head_is_gathered_and_its_gradient_averaged(tmp_path):
    expected = []
    for rank in (0, 1):
        leaves = [x.requires_grad_() for x in parameters()]
        loss = loss_of(rank, *leaves)
        expected.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    mean = [(a + b) / 2 for a, b in zip(*expected, strict=True)]
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in (0, 1):
        loss, weight, bias = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, expected[rank][0])
        torch.testing.assert_close(weight, mean[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias, mean[2], atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
