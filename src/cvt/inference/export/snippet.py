"""A short program that uses an exported file, without this library."""

import json
from dataclasses import dataclass
from pathlib import Path

from cvt.data.formats import FORMATS
from cvt.inference.export.trace import INPUT_KEY, Metadata
from cvt.weights.checkpoint import METADATA_KEY


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What opens and runs a format: its package, and the lines that do it."""

    package: str
    open: str
    run: str


_TORCH_RUN = "output = network(torch.from_numpy(images){to}){back}.numpy()"
_RUNTIMES = {
    "program": Runtime(
        package="torch",
        open="""\
extra = {{"{key}": ""}}
network = torch.export.load({path}, extra_files=extra).module()
record = json.loads(extra["{key}"])
""",
        run=_TORCH_RUN,
    ),
    "aot": Runtime(
        package="torch",
        open="""\
network = torch._inductor.aoti_load_package({path})
record = json.loads(network.get_metadata()["{key}"])
""",
        run=_TORCH_RUN,
    ),
    "onnx": Runtime(
        package="onnxruntime",
        open="""\
network = onnxruntime.InferenceSession({path}, providers=["CPUExecutionProvider"])
record = json.loads(network.get_modelmeta().custom_metadata_map["{key}"])
""",
        run='output = network.run(["output"], {{"image": images}})[0]',
    ),
    "openvino": Runtime(
        package="openvino",
        open="""\
graph = openvino.Core().read_model({path})
record = json.loads(graph.get_rt_info(["{key}"]).astype(str))
""",
        run="""\
graph.reshape(list(images.shape))  # known sizes run faster than free ones
# Without "f32", CPUs with bf16 instructions compute in bf16: faster, and less exact.
network = openvino.compile_model(graph, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
output = network(images)[0]""",
    ),
}

_SCALE = {
    "square": """\
short = int(height / about["crop_pct"])
size = tuple(int(short * side / min(image.size)) for side in image.size)
""",
    "oblong": """\
ratio = min(
    image.height / int(height / about["crop_pct"]),
    image.width / int(width / about["crop_pct"]),
)
size = tuple(round(side / ratio) for side in image.size)
""",
    "squash": """\
size = (int(width / about["crop_pct"]), int(height / about["crop_pct"]))
""",
}

_PREPARE = """\
about = record["preprocessing"]
channels, height, width = about["input_size"]
formats = "{formats}".split()
with open(sys.argv[1], "rb") as file:
    image = Image.open(file, formats=formats)
    is_scaled = image.format == "PPM" and image.tile[0][0] != "raw"  # by its own largest value
    is_deep = image.mode.startswith("RGB") and ";16" in str(image.tile)
    image.load()
if is_deep and np.asarray(image)[..., :3].max() < 64:
    sys.exit("Got 14 bits or fewer of colour in 16, of which Pillow keeps 8; save it in 8 bits.")
turned = {{2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}}.get(image.getexif().get(274))
if image.mode[0] in "IF":  # grey of more than 8 bits, from 0 to the largest value of its depth
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {{}})
    if image.mode == "I" and tags and tags.get(339, (1,))[0] == 1:  # unsigned
        levels = levels.view(np.uint32)
    levels, known = levels.astype(np.float64), np.isfinite(levels)
    low, high = (levels[known].min(), levels[known].max()) if known.any() else (0, 0)
    if image.mode != "F" and low >= 0 and high < 65536:
        stated = 16 if is_scaled else 12 if tags.get(258) == (12,) else 8
        low, high = 0, next(2**b - 1 for b in (8, 10, 12, 14, 16) if stated <= b and high < 2**b)
    levels = np.where(known, levels - low, 0) * (255 / (high - low or 1))
    image = Image.fromarray(np.round(levels).astype(np.uint8))
elif image.has_transparency_data:
    image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
image = image.convert("RGB")
image = image if turned is None else image.transpose(Image.Transpose(turned))
{scale}image = image.resize(size, Image.Resampling[about["interpolation"].upper()]){grey}
left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
image = image.crop((left, top, left + width, top + height))
values = np.asarray(image, np.float32).reshape(height, width, channels) / 255
values = (values - np.float32(about["mean"])) / np.float32(about["std"])
images = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
"""

_NO_IMAGE = """\
channels, height, width = record["preprocessing"]["input_size"]
images = np.zeros((1, channels, height, width), np.float32)  # yours, normalised
"""

_LABELS = """\
chances = np.exp(output[0] - output[0].max())
chances /= chances.sum()
names = record["class_names"] or range(len(chances))
for index in chances.argsort()[::-1][:5]:
    print(f"{chances[index]:7.2%}  {names[index]}")
"""


def snippet(name: str, path: Path, metadata: Metadata, device: str = "cpu") -> str:
    """Returns the source of a program that prints the five likeliest labels of an image.

    It opens and prepares the image as this library does (`cvt.data.image`), with Pillow and numpy
    alone, by the numbers in the file; what the file takes stands above it. It ends at what Pillow
    itself can't read: HEIC, and dark colour of 16 bits, of which Pillow keeps the upper eight.
    The `path` is the file as the program is to open it.
    """
    sizes, record, runtime = metadata.sizes, metadata.record, _RUNTIMES[name]
    keys = {"path": json.dumps(str(path), ensure_ascii=False), "key": METADATA_KEY}
    parts = [
        f"# Save as use.py; python use.py IMAGE. Needs: {runtime.package}, numpy, pillow.\n"
        f"# Takes images {sizes.sentence()}, float32;\n"
        f'# the metadata says it under "{INPUT_KEY}", beside the record under "{METADATA_KEY}".\n',
        "import json\nimport sys\n\n"
        f"import numpy as np\nimport {runtime.package}\nfrom PIL import Image\n",
        runtime.open.format(**keys),
        _image(metadata),
    ]
    low, high = sizes.batch
    if low == high and low > 1:
        parts.append(f"images = np.repeat(images, {low}, axis=0)  # a call takes {low} images\n")
    to, back = ("", "") if device.startswith("cpu") else (f'.to("{device}")', ".cpu()")
    parts.append(runtime.run.format(to=to, back=back) + "\n")
    has_classes = record.spec.num_classes > 0 and record.spec.global_pool != ""
    parts.append(_LABELS if has_classes else "print(output.shape)\n")
    head, *body = parts
    source = "\n".join((head + body[0], "".join(body[1:])))
    return source if "Image." in source else source.replace("from PIL import Image\n", "")


def _image(metadata: Metadata) -> str:
    about = metadata.record.preprocessing
    channels, height, width = about.input_size
    if channels not in (1, 3):
        return _NO_IMAGE
    kind = "square" if height == width else "oblong"
    scale = _SCALE["squash" if about.crop_mode == "squash" else kind]
    names = [each.name for each in FORMATS if each.name != "HEIF"]  # for which Pillow has no reader
    grey = '.convert("L")' if channels == 1 else ""
    return _PREPARE.format(formats=" ".join(names), grey=grey, scale=scale)
