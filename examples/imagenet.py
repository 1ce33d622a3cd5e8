"""ImageNet, or any photographs: timm's model, random resized crops, FDT in all but the last epochs, on many GPUs.
torchrun --standalone --nproc-per-node 8 examples/imagenet.py runs/imagenet/train runs/imagenet/test --model resnet50"""

import os

import timm
import torch
import torch.distributed as dist
from ddp import accuracy
from plain import resume, save
from shared import arguments
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from fdt_pipeline import FDT, FDTLoader, RandomResizedCrop, ResizeCrop

OPTIONS = {"model": "resnet50", "size": 224, "batch_size": 128, "max_images": 4, "whole_epochs": 10, "save_every": 1000}


def main():
    args = arguments(__doc__, "runs/imagenet.pt", dict.fromkeys(("train", "val"), "shards"), epochs=90, **OPTIONS)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    crop, middle = RandomResizedCrop(args.size), ResizeCrop(resize=args.size * 8 // 7, crop=args.size)  # 256 and 224
    sums, whole_from = FDT(max_images=args.max_images), args.epochs - args.whole_epochs  # then whole images
    common = {"batch_size": args.batch_size, "normalize": "imagenet", "last_batch": "fill", "device": device}
    loader = FDTLoader(args.train, **common, augment=crop, ring=1024, mix=lambda e: sums if e < whole_from else None)
    val_loader = FDTLoader(args.val, **common, augment=middle, train=False, weights=True)
    torch.manual_seed(0)
    network = timm.create_model(args.model, num_classes=loader.num_classes).to(device)
    model = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-5, nesterov=True)
    lr, num_steps = 0.1 * loader.global_batch_size / 256, args.epochs * len(loader)
    schedule = OneCycleLR(optimizer, lr, num_steps, pct_start=0.05, cycle_momentum=False)
    parts = {"model": network, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    step = resume(args.checkpoint, parts, device) if args.checkpoint.exists() else 0
    say = print if dist.get_rank() == 0 else lambda line: None
    while loader.epoch < args.epochs and step != args.steps:
        for images, targets in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            say(f"step {step}: loss {loss.item():.6f}")
            if step % args.save_every == 0 and dist.get_rank() == 0:
                save(args.checkpoint, step, parts)
            if step == args.steps:
                break
        say(f"accuracy {accuracy(network.eval(), val_loader):.4f}")
        network.train()
    dist.barrier()  # as in ddp.py
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
