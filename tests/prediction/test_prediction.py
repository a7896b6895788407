import io
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

import cvt


@pytest.fixture
def predictor(checkpoint):
    return cvt.Predictor(checkpoint, batch_size=2)


def test_labels_are_names_with_probabilities_best_first(predictor, photos):
    (prediction,) = predictor(photos / "a.jpg", top_k=6)
    assert prediction.image == str(photos / "a.jpg")
    assert {label.name for label in prediction.labels} == set(predictor.class_names)
    probabilities = [label.probability for label in prediction.labels]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert all(predictor.class_names[label.index] == label.name for label in prediction.labels)


def test_paths_bytes_files_and_pillow_images_are_the_same_image(predictor, photos):
    path = photos / "b.png"
    with Image.open(path) as image, open(path, "rb") as file:
        sources = [str(path), path, path.read_bytes(), file, image]
        predictions = predictor(sources, top_k=2)
    for prediction in predictions[1:]:
        got, expected = prediction.labels[0], predictions[0].labels[0]
        assert got.name == expected.name
        # The last of five stands alone in its batch: float32 sums in another order.
        assert got.probability == pytest.approx(expected.probability, abs=1e-6)
    assert predictions[2].image == "image 3"


def test_a_batch_says_what_single_images_say(checkpoint, photos):
    paths = sorted(p for p in photos.rglob("*") if p.suffix in {".jpg", ".png", ".webp", ".jpeg"})
    paths = [path for path in paths if not path.name.startswith(".")]
    together = cvt.Predictor(checkpoint, batch_size=8)(paths)
    alone = [cvt.Predictor(checkpoint, batch_size=1)(path)[0] for path in paths]
    for a, b in zip(together, alone, strict=True):
        assert [x.name for x in a.labels] == [x.name for x in b.labels]
        # Float32 sums in another order.
        assert [x.probability for x in a.labels] == pytest.approx(
            [x.probability for x in b.labels], abs=1e-5
        )


def test_it_is_the_model_on_the_preprocessed_image(predictor, checkpoint, photos):
    from cvt.data import eval_transform, open_image

    model = cvt.load(checkpoint)
    tensor = eval_transform(model.record.preprocessing)(open_image(photos / "a.jpg"))
    with torch.no_grad():
        probabilities = model(tensor[None]).softmax(dim=1)[0]
    best = predictor(photos / "a.jpg", top_k=1)[0].labels[0]
    assert best.index == probabilities.argmax()
    assert best.probability == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_bad_images_stand_in_their_place_with_a_sentence(predictor, photos, tmp_path):
    (tmp_path / "empty.jpg").touch()
    whole = (photos / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    sources = [
        photos / "a.jpg",
        tmp_path / "empty.jpg",
        tmp_path / "cut.jpg",
        photos / "notes.txt",
        tmp_path / "nowhere.jpg",
        photos / "b.png",
    ]
    predictions = predictor(sources)
    assert [prediction.error is None for prediction in predictions] == [True] + [False] * 4 + [True]
    for prediction, word in zip(
        predictions[1:5], ("empty", "cut short", "not an image", "no file"), strict=True
    ):
        assert word in prediction.error
        assert prediction.image in prediction.error
        assert prediction.to_dict() == {"image": prediction.image, "error": prediction.error}


def test_only_bad_images_need_no_model_run(predictor, tmp_path):
    assert predictor([tmp_path / "a", tmp_path / "b"])[1].error


def test_no_images_no_predictions(predictor):
    assert predictor([]) == []


def test_images_are_read_as_they_are_needed(predictor, photos):
    taken = []

    def sources():
        for _ in range(6):
            taken.append(1)
            yield photos / "b.png"

    stream = predictor.stream(sources())
    next(stream)
    assert len(taken) == 2


def test_a_model_that_load_returned_serves_as_well(checkpoint, photos):
    assert cvt.Predictor(cvt.load(checkpoint))(photos / "b.png")[0].labels


def test_class_numbers_where_there_are_no_names(checkpoint, photos):
    model = cvt.load(checkpoint, num_classes=3)
    assert {x.name for x in cvt.Predictor(model)(photos / "b.png")[0].labels} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: cvt.Predictor(path, batch_size=0), "batch_size 0"),
        (lambda path: cvt.Predictor(path, device="cuda:99"), "device 'cuda:99'"),
        (lambda path: cvt.Predictor(cvt.load(path, num_classes=0)), "no classifier"),
        (lambda path: cvt.Predictor(cvt.create_model("cvt_nano_32")), "no record"),
        (lambda path: cvt.Predictor(path)(io.BytesIO(), top_k=0), "top_k 0"),
    ],
)
def test_mistakes_get_a_sentence(checkpoint, make, message):
    with pytest.raises(cvt.UserError, match=message):
        make(checkpoint)


def test_classes_that_may_hold_together_are_sigmoids(checkpoint, photos):
    model = cvt.load(checkpoint)
    (single,) = cvt.Predictor(model)(photos / "a.jpg", top_k=6)
    model.record = replace(model.record, multi_label=True)
    (several,) = cvt.Predictor(model)(photos / "a.jpg", top_k=6)
    odds = {label.name: label.probability / (1 - label.probability) for label in several.labels}
    # exp(logit) is the odds of a sigmoid, and what a softmax shares out.
    for label in single.labels:
        assert odds[label.name] / sum(odds.values()) == pytest.approx(label.probability, rel=1e-4)


def test_one_output_is_no_certainty(checkpoint, photos):
    model = cvt.load(checkpoint, num_classes=1)
    model.record = replace(model.record, multi_label=True, class_names=("defect",))
    (prediction,) = cvt.Predictor(model)(photos / "a.jpg")
    assert prediction.labels[0].probability < 0.999


def rgb(seed=0, size=(40, 30)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def same(one, other):
    """Whether two predictions name the same, to float32's rounding in batches of other sizes."""
    return [x.index for x in one.labels] == [x.index for x in other.labels] and [
        x.probability for x in one.labels
    ] == pytest.approx([x.probability for x in other.labels], abs=1e-5)


def test_arrays_and_tensors_are_the_images_that_they_hold(predictor):
    pixels = rgb()
    grey, clear = pixels[:, :, 0], np.dstack([pixels, pixels[:, :, 0]])
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    for array, pillow in [
        (pixels, Image.fromarray(pixels)),
        (pixels[:, ::-1], Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]))),
        (pixels.astype(np.float32) / 255, Image.fromarray(pixels)),
        (pixels / 255, Image.fromarray(pixels)),
        (grey, Image.fromarray(grey)),
        (grey[:, :, None], Image.fromarray(grey)),
        (grey > 100, Image.fromarray((grey > 100).astype(np.uint8) * 255)),
        (clear, Image.fromarray(clear)),
        (planes, Image.fromarray(pixels)),
        (planes[0], Image.fromarray(grey)),
        (planes.double() / 255, Image.fromarray(pixels)),
        ((planes.float() / 255).requires_grad_(), Image.fromarray(pixels)),
    ]:
        (got,), (expected,) = predictor(array), predictor(pillow)
        assert got.error is None
        assert got.image == "image 1"
        assert same(got, expected)


def test_several_arrays_stand_for_several_images(predictor):
    pixels = np.stack([rgb(seed) for seed in range(3)])
    expected = [predictor(each)[0] for each in pixels]
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for several in (pixels, planes, list(pixels), [planes[:2], planes[2]], iter(planes)):
        got = predictor(several)
        assert [each.image for each in got] == ["image 1", "image 2", "image 3"]
        assert all(map(same, got, expected))


def test_folders_patterns_and_mixed_lists(predictor, photos):
    names = ["a.jpg", "b.png", "c.webp", "d.jpeg"]
    with pytest.warns(cvt.errors.Remark, match="notes.txt"):
        assert [Path(each.image).name for each in predictor(photos)] == names
    assert [Path(each.image).name for each in predictor(f"{photos}/*.[jp]*g")] == names[:2]
    mixed = [
        photos / "more",
        rgb(),
        str(photos / "b.png"),
        bytearray((photos / "a.jpg").read_bytes()),
    ]
    got = predictor(mixed)
    assert [each.error for each in got] == [None] * 5
    assert [each.image for each in got][2:] == ["image 3", str(photos / "b.png"), "image 5"]
    paths = np.array([str(photos / name) for name in names[:2]])
    assert [Path(each.image).name for each in predictor(paths)] == names[:2]
    with NamedTemporaryFile(suffix=".png") as file:
        file.write((photos / "b.png").read_bytes())
        file.seek(0)
        assert predictor(file)[0].error is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 40, 30), np.uint8), "shape (3, 40, 30), expected (H, W) or (H, W, C)"),
        (torch.zeros(40, 30, 3), "shape (40, 30, 3), expected (H, W) or (C, H, W)"),
        (np.zeros((0, 30, 3), np.uint8), "shape (0, 30, 3)"),
        (np.zeros((2, 2, 2, 2, 3), np.uint8), "shape (2, 2, 2, 2, 3)"),
        (np.zeros(7), "shape (7,)"),
        (np.zeros((4, 4), np.int64), "of int64, expected uint8 of 0 to 255, or floats of 0 to 1"),
        (torch.zeros(4, 4, dtype=torch.int32), "of int32"),
        (np.full((4, 4), 255.0), "values from 255 to 255"),
        (torch.randn(3, 9, 9), "that are not normalised yet"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (torch.zeros(4, 4).to_sparse(), "without plain numbers"),
        (np.zeros((1, 4000, 3), np.uint8), "the long side"),
        ([3.5], "Got float '3.5' among the images"),
        ([None], "Got NoneType"),
        ([[rgb()]], "Got list"),
        ("nowhere/*.jpg", "No file matches"),
    ],
)  # fmt: skip
def test_what_is_no_image_stands_in_its_place_with_a_sentence(predictor, source, words):
    first, *rest = predictor([source, rgb()] if not isinstance(source, list) else [*source, rgb()])
    assert words in first.error
    assert len(first.error) < 400
    assert rest[-1].labels


@given(
    dtype=some.sampled_from(["uint8", "float32", "float64", "float16", "int16", "?", "complex64"]),
    shape=some.lists(some.integers(0, 5), max_size=5),
    fill=some.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan"), float("inf"), -1.0]),
    as_tensor=some.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_any_array_is_answered_or_refused_by_a_sentence(tiny, dtype, shape, fill, as_tensor):
    with np.errstate(invalid="ignore"):
        array = np.full(shape, fill).astype(dtype)
    for got in tiny(torch.from_numpy(array) if as_tensor else array):
        assert bool(got.labels) != bool(got.error)
        assert all(0 <= label.probability <= 1 for label in got.labels)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    return cvt.Predictor(checkpoint)


@pytest.mark.parametrize("sources", [3, None, {"image": "a.jpg"}, object()])
def test_no_images_at_all_are_a_mistake(predictor, sources):
    with pytest.raises(cvt.UserError, match="expected images: paths, bytes"):
        predictor(sources)


def test_probabilities_are_rows_in_order(predictor, photos):
    sources = [photos / "a.jpg", rgb(), photos / "b.png"]
    table = predictor.probabilities(sources)
    assert (table.shape, table.dtype) == ((3, 6), np.float32)
    assert table.sum(axis=1) == pytest.approx(1, abs=1e-5)
    for row, prediction in zip(table, predictor(sources, top_k=6), strict=True):
        for label in prediction.labels:
            assert row[label.index] == pytest.approx(label.probability, abs=1e-6)
    assert predictor.probabilities([]).shape == (0, 6)


def test_embeddings_are_what_the_classifier_is_fed_with(predictor, photos):
    table = predictor.embed([photos / "a.jpg", rgb(), photos / "b.png"])
    assert (table.shape, table.dtype) == ((3, predictor.model.num_features), np.float32)
    with torch.no_grad():
        logits = predictor.model.head(torch.from_numpy(table))
    expected = predictor.probabilities([photos / "a.jpg", rgb(), photos / "b.png"])
    assert logits.softmax(dim=1).numpy() == pytest.approx(expected, abs=1e-5)
    assert predictor.embed([]).shape == (0, predictor.model.num_features)


@pytest.mark.parametrize("table", ["probabilities", "embed"])
def test_rows_never_stand_for_other_images(predictor, photos, table):
    bad = [f"nowhere{number}.jpg" for number in range(12)]
    with pytest.raises(cvt.UserError, match="12 of 13 images that cannot be used") as raised:
        getattr(predictor, table)([photos / "a.jpg", *bad])
    lines = str(raised.value).splitlines()
    assert len(lines) == 12
    assert "nowhere0.jpg" in lines[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, pytest.param({"engine": "openvino"}, id="openvino")],
)
def test_deployed_models_predict(checkpoint, photos, options):
    if "engine" in options:
        pytest.importorskip("openvino")
    model = cvt.load(checkpoint)
    deployed = cvt.Predictor(cvt.deploy(model, **options))
    (got,), (expected,) = deployed(photos / "a.jpg", 6), cvt.Predictor(model)(photos / "a.jpg", 6)
    chances = {label.index: label.probability for label in expected.labels}
    # Logits of a size of about 1, rounded to bfloat16's 8 bits, or to float32's in another order.
    tolerance = 1e-2 if options.get("dtype") else 1e-5
    assert all(abs(chances[x.index] - x.probability) < tolerance for x in got.labels)
    with pytest.raises(cvt.UserError, match="model that it was deployed from"):
        deployed.embed(photos)
    with pytest.raises(cvt.UserError, match="deployed model, which has its own"):
        cvt.Predictor(deployed.model, precision="bf16")


def test_outputs_that_are_no_numbers_are_said(checkpoint, photos):
    model = cvt.load(checkpoint)
    with torch.no_grad():
        model.head.bias[2] = torch.nan
    predictor = cvt.Predictor(model)
    (got,) = predictor(photos / "a.jpg")
    assert (got.labels, "no finite number" in got.error) == ((), True)
    with pytest.raises(cvt.UserError, match="cannot be used"):
        predictor.probabilities([photos / "a.jpg"])


def test_labels_that_hold_together_have_chances_of_their_own(checkpoint, photos):
    model = cvt.load(checkpoint)
    model.record = replace(model.record, multi_label=True)
    table = cvt.Predictor(model).probabilities(photos / "a.jpg")
    model.record = replace(model.record, multi_label=False)
    chances = cvt.Predictor(model).probabilities(photos / "a.jpg")
    odds = table / (1 - table)  # exp of each logit; a softmax is their share
    assert odds / odds.sum() == pytest.approx(chances, abs=1e-4)


def test_in_one_call(predictor, checkpoint, photos):
    paths = [photos / "a.jpg", photos / "b.png"]
    together = cvt.predict(checkpoint, paths, top_k=2, batch_size=2)
    assert together == predictor(paths, top_k=2)
    with pytest.raises(cvt.UserError, match="Got precision 'bf17'"):
        cvt.predict(checkpoint, paths, precision="bf17")
