"""Webdataset tars as other programs make them. Each image is flat, of the level 20 * label + 10."""

import io
import json
import os
import subprocess
import tarfile

import numpy as np
from PIL import Image

from tests.peers import peer

NUM_CLASSES = 5


def label_of(number):
    return (number * 7 + 3) % NUM_CLASSES


def picture(number, form="JPEG", mode="RGB", **options):
    """The file of image `number`: sizes differ."""
    image = Image.new("L", (9 + number % 5, 8 + number % 3), 20 * label_of(number) + 10).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    """members: (name, content), in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number, name=None, image="jpg", **members):
    """Members of a sample; by default an image and a .cls."""
    name = f"{number:04d}" if name is None else name
    members = members or {"cls": str(label_of(number))}
    return [(f"{name}.{image}", picture(number))] + [
        (f"{name}.{extension}", data if isinstance(data, bytes) else data.encode())
        for extension, data in members.items()
    ]


def shard_writer(folder):
    """What webdataset's own writer makes, with the keys of a tree."""
    folder.mkdir()
    with peer("webdataset", "test").ShardWriter(str(folder / "x-%03d.tar"), maxcount=25, verbose=0) as writer:
        for number in range(60):
            writer.write(
                {
                    "__key__": f"tree.v2/n{number % 3}/{number:04d}",
                    "jpg": picture(number),
                    "cls": label_of(number),
                    "json": {"number": number},
                }
            )
    return {"num_samples": 60, "left_out": 0}


def img2dataset(folder):
    """Samples of jpg, json and txt; of a download that failed, the json alone."""
    for shard in range(2):
        members = []
        for number in range(30 * shard, 30 * shard + 30):
            about = {"key": f"{number:09d}", "status": "success", "meta": {"class": label_of(number)}}
            if number % 10 == 9:
                members.append((f"{number:09d}.json", json.dumps({**about, "status": "failed"}).encode()))
            else:
                members += sample(number, f"{number:09d}", json=json.dumps(about), txt="a caption")
        write_tar(folder / f"{shard:05d}.tar", members)
    return {"num_samples": 54, "left_out": 6, "label": "json:meta.class"}


def timm_imagenet(folder):
    """As timm's ImageNet: cls, jpg, json, in this order."""
    for shard in range(3):
        members = []
        for number in range(20 * shard, 20 * shard + 20):
            about = {"label": label_of(number), "filename": f"n{number}.JPEG"}
            image, *others = sample(number, f"n{number:08d}", cls=str(label_of(number)), json=json.dumps(about))
            members += [others[0], image, others[1]]
        write_tar(folder / f"imagenet-train-{shard:04d}.tar", members)
    return {"num_samples": 60, "left_out": 0}


def gnu_tar(form):
    """A tree packed by the tar of the system: folders, hidden files, long names, spellings, blanks, a README."""

    def make(folder):
        tree = folder.with_name("tree")
        for number in range(40):
            below = tree / ("d" * 60 if number % 2 else "a.b c") / ("\u00e4" if number % 3 else "e" * 100)
            below.mkdir(parents=True, exist_ok=True)
            name = f"{number:03d}" + "n" * (number % 4) * 40
            extension, form_of_image = [("JPG", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("WebP", "WEBP")][number % 4]
            (below / f"{name}.{extension}").write_bytes(picture(number, form_of_image))
            (below / f"{name}.cls").write_text(f"{label_of(number)}\n")
            (below / f"._{name}.jpg").write_bytes(b"of a Mac")
            (below / f"{name}.npy").write_bytes(os.urandom(3000))
        (tree / "README").write_text("text")
        folder.mkdir()
        command = ["tar", "--sort=name", f"--format={form}", "-cf", folder / "x.tar", "-C", tree, "."]
        subprocess.run(command, check=True)
        return {"num_samples": 40, "left_out": 0}

    return make


LAYOUTS = {
    "webdataset's ShardWriter": shard_writer,
    "img2dataset": img2dataset,
    "timm's ImageNet": timm_imagenet,
    "GNU tar": gnu_tar("gnu"),
    "PAX tar": gnu_tar("pax"),
}


def levels(images):
    """f32[n c h w] in 0..255 -> i64[n], the labels that they show."""
    return np.rint((images.mean(dim=(1, 2, 3)).numpy() - 10) / 20).astype(int)
