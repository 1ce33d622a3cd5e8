"""A trainer that may be killed at any moment: it writes a checkpoint at every step and goes on from the last one."""

import os
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer of a process would import it, in seconds: do it before a fork

from fdt_pipeline import FDTLoader

NUM_EPOCHS = 3
BATCH_SIZE = 10  # 23 steps an epoch of 230 samples


def train(shards, folder, mode):
    """Until the end, or its own."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    window = {"ring": 70} if mode == "streaming" else {}
    loader = FDTLoader(shards, BATCH_SIZE, mode=mode, seed=3, num_threads=1, **window)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(90, 16), torch.nn.ReLU(), torch.nn.Linear(16, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpoint, num_steps = Path(folder) / "checkpoint.pt", 0
    if checkpoint.exists():
        stored = torch.load(checkpoint)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        loader.load_state_dict(stored["loader"])
        num_steps = stored["num_steps"]
    for epoch in range(loader.epoch, NUM_EPOCHS):
        loader.set_epoch(epoch)
        for images, targets in loader:
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_steps += 1
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
            save({**states, "num_steps": num_steps}, checkpoint)


def save(state, path):
    """So that a kill leaves the old one or the new one."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)
