import io
from dataclasses import replace

import pytest
import torch
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


def test_paths_bytes_files_and_pillow_images_are_the_same_picture(predictor, photos):
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


def test_a_batch_says_what_single_pictures_say(checkpoint, photos):
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


def test_it_is_the_model_on_the_preprocessed_picture(predictor, checkpoint, photos):
    from cvt.data import eval_transform, open_image

    model = cvt.load(checkpoint)
    tensor = eval_transform(model.record.preprocessing)(open_image(photos / "a.jpg"))
    with torch.no_grad():
        probabilities = model(tensor[None]).softmax(dim=1)[0]
    best = predictor(photos / "a.jpg", top_k=1)[0].labels[0]
    assert best.index == probabilities.argmax()
    assert best.probability == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_bad_pictures_stand_in_their_place_with_a_sentence(predictor, photos, tmp_path):
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


def test_only_bad_pictures_need_no_model_run(predictor, tmp_path):
    assert predictor([tmp_path / "a", tmp_path / "b"])[1].error


def test_no_pictures_no_predictions(predictor):
    assert predictor([]) == []


def test_pictures_are_read_as_they_are_needed(predictor, photos):
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
