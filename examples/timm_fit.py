"""timm: a model, optimizer, schedule and moving average of its own, and SoftTargetCrossEntropy for FDT's targets.

python examples/timm_fit.py runs/demo/shards --epochs 2
"""

import timm
import torch
from shared import arguments
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy

from fdt_pipeline import FDTLoader


@torch.no_grad()
def evaluate(model, loader):
    top1 = AverageMeter()
    for images, labels in loader:
        (percent,) = accuracy(model(images), labels)
        top1.update(percent.item(), len(labels))
    return top1.avg / 100


def main():
    args = arguments(__doc__)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = FDTLoader(args.shards / "train", batch_size=64, device=device)
    test_loader = FDTLoader(args.shards / "test", batch_size=64, train=False, device=device)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=loader.num_classes, in_chans=loader.shape[0]).to(device)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1, weight_decay=1e-4)
    schedule, num_epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=args.epochs, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    average = ModelEmaV3(model, use_warmup=True)
    soft_cross_entropy, losses, step = SoftTargetCrossEntropy(), AverageMeter(), 0
    while loader.epoch < num_epochs and step != args.steps:
        for images, targets in loader:
            loss = soft_cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            schedule.step_update(step)
            average.update(model, step)
            losses.update(loss.item(), len(targets))
            print(f"step {step}: loss {losses.val:.4f} ({losses.avg:.4f})")
            if step == args.steps:
                break
    print(f"accuracy {evaluate(average.module.eval(), test_loader):.4f}")


if __name__ == "__main__":
    main()
