"""Files of torchvision's detectors in models with a pyramid: whole, by class name, or refused in a line."""

import copy
import hashlib
import re
from pathlib import Path

import pytest
import torch
from support import small_batch
from torch import nn
from torch.testing import assert_close
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead

from grcn import COCO_CLASSES, VOC_CLASSES, build_model, load_config
from grcn.catalog import PYRAMID_SPLITS, RESNET_UNITS
from grcn.errors import CheckpointError
from grcn.models import weights
from grcn.models.layer_names import layer_name
from grcn.models.pyramid import PyramidResNet
from grcn.models.weights import load_weights

BASE = Path(__file__).resolve().parents[2] / "configs/_base/coco_fpn.yaml"
SMALL = "backbone=resnet50_fpn image.short=64 image.max=160 rpn.post_nms_test=16 head.dim=16"
V2 = "pyramid.norm=frozen rpn.convs=2 head.kind=conv_fc"
FOR_V1 = "set model.pyramid.norm=none model.rpn.convs=1 model.head.kind=fc"
FOR_V2 = "set model.pyramid.norm=frozen model.rpn.convs=2 model.head.kind=conv_fc"
BODY, FPN, PREDICTOR, COUNTER = "backbone.body.", "backbone.fpn.", "roi_heads.box_predictor.", "num_batches_tracked"
HEAD, NOT_ONE = "roi_heads.box_head.", "this is not a Faster R-CNN on a pyramid of resnet50, or the file is incomplete"
MASK = ("roi_heads.mask_head", "roi_heads.mask_predictor")
TO_COCO = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip


@torch.no_grad()
def torchvision_model(name):
    """A detector of 90 classes with random norms and a narrow head, and its state in half precision."""
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 160, "rpn_post_nms_top_n_test": 16}
    model = get_model(name, weights=None, weights_backbone=None, **options).eval()
    if name.endswith("v2"):
        model.roi_heads.box_head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [16], nn.BatchNorm2d).eval()
    else:
        model.roi_heads.box_head = TwoMLPHead(256 * 49, 16)
    model.roi_heads.box_predictor = FastRCNNPredictor(16, 91)
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0).mul_(0.3 if key.endswith("bn3") else 1)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    stem = model.backbone.body.bn1
    stem.weight.mul_(0.01)
    stem.running_var.mul_(1e-4)  # so small that the epsilon of a norm can be seen
    model.rpn.head.cls_logits.weight.mul_(20)
    model.roi_heads.box_predictor.cls_score.weight.mul_(100)
    state = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model, {key: value for key, value in state.items() if name.endswith("v2") or not key.endswith(COUNTER)}


@pytest.fixture(scope="module")
def v1():
    return torchvision_model("fasterrcnn_resnet50_fpn")


@pytest.fixture(scope="module")
def v2():
    return torchvision_model("fasterrcnn_resnet50_fpn_v2")


@pytest.fixture(scope="module")
def entry(v1, tmp_path_factory):
    return saved(v1[1], tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def plain(entry):
    """A detector with all weights of the file."""
    return loaded(entry)[0]


def saved(state, folder):
    torch.save(state, folder / "w.pth")
    return f"torchvision:{folder / 'w.pth'}"


def build(entry, changes="", classes=90):
    settings = f"{SMALL} weights={entry} {changes}".split()
    return build_model(load_config(BASE, [f"model.{setting}" for setting in settings]).model, classes + 1).eval()


def loaded(entry, changes="", classes=90, names=None):
    model = build(entry, changes, classes)
    return model, load_weights(model, entry, names)


def of_2019(key):
    return re.sub(r"((inner|layer)_blocks\.\d)\.0\.", r"\1.", key).replace("head.conv.0.0.", "head.conv.")


@torch.no_grad()
def assert_detects_the_same(ours, theirs):
    images, _ = small_batch()
    for some in (images[:1], images):
        found = ours(some)
        assert all(len(one["boxes"]) > 5 and one["scores"].std() > 0.01 for one in found)
        assert_close(found, theirs(some), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["v1", "2019", "mask", "v2"])
def test_every_tensor_of_a_detector_is_loaded(kind, v1, v2, tmp_path):
    theirs, state = v2 if kind == "v2" else v1
    if kind == "2019":
        state = {of_2019(key): value for key, value in state.items()}
        assert len(state.keys() - v1[1].keys()) == 18
        assert not theirs.load_state_dict(state, strict=False).unexpected_keys  # torchvision knows them
    if kind == "mask":
        with torch.device("meta"):
            keys = get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None).state_dict().keys()
        assert keys > state.keys()
        state = state | {key: torch.ones(3) for key in keys if key.startswith(MASK)}
    ours, report = loaded(saved(state, tmp_path), V2 if kind == "v2" else "")
    assert report.loaded == list(ours.state_dict()) and not report.new and not report.ignored
    assert report.left == (list(MASK) if kind == "mask" else [])
    needed = [key for key in state if not key.startswith(MASK) and not key.endswith(COUNTER)]
    norms = sum(key.endswith("running_var") for key in needed)
    assert len(report.loaded) == len(needed) - 2 * norms  # a norm is a scale and a shift
    end = f"; left: {', '.join(MASK)}" if kind == "mask" else ""
    text = f"{len(report.loaded)} weights loaded, 0 new (none), 0 keys of the file not needed (none)"
    assert str(report) == f"{tmp_path / 'w.pth'}: {text}; rows of all classes kept, in their order{end}"
    assert_detects_the_same(ours, theirs)


@pytest.mark.parametrize(
    "classes, same_as, kept, text",
    [
        (COCO_CLASSES, None, 81, "rows of 81 of 81 classes kept by name (background, person, bicycle, ...)"),
        (VOC_CLASSES, None, 15, "6 new (aeroplane, diningtable, motorbike, ...)"),
        (VOC_CLASSES, TO_COCO, 21, "rows of 21 of 21 classes kept by name (background, aeroplane, bicycle, ...)"),
        ((*COCO_CLASSES, *"abcdefghij"), None, 81, "person, bicycle, ...), 10 new (a, b, c, ...)"),
        (("sun", "moon"), None, 1, "rows of 1 of 3 classes kept by name (background), 2 new (sun, moon)"),
    ],
    ids=["coco", "voc", "voc renamed", "more", "none"],
)
def test_rows_go_to_the_classes_of_their_names(v1, entry, classes, same_as, kept, text):
    model = build(entry, classes=len(classes))
    heads = model.roi_heads.heads
    fresh = {name: value.clone() for name, value in heads.state_dict().items() if not name.startswith("cls.")}
    report = load_weights(model, entry, classes, same_as)
    assert str(report).endswith(text) and not report.new and not report.ignored
    labels = ["background", *FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]]
    assert (labels[1], labels[13], labels[90]) == ("person", "stop sign", "toothbrush")
    sought = ["background", *((same_as or {}).get(name, name) for name in classes)]
    assert sum(name in labels for name in sought) == kept
    for name, value in fresh.items():
        theirs, ours = v1[1][f"{PREDICTOR}{name}"].float(), heads.state_dict()[name]
        assert len(ours) == len(sought) * len(theirs) // 91
        rows = [some.unflatten(0, (-1, len(theirs) // 91)) for some in (theirs, value, ours)]
        for row, label in enumerate(sought):
            expected = rows[0][labels.index(label)] if label in labels else rows[1][row]
            assert torch.equal(rows[2][row], expected)


def test_a_detector_of_three_classes_keeps_its_rows_where_there_are_three(v1, tmp_path):
    torch.manual_seed(1)
    theirs = copy.deepcopy(v1[0])
    theirs.roi_heads.box_predictor = FastRCNNPredictor(16, 4)
    theirs.roi_heads.box_predictor.cls_score.weight.data.mul_(40)
    own = {f"{PREDICTOR}{name}": value for name, value in theirs.roi_heads.box_predictor.state_dict().items()}
    entry, names = saved(v1[1] | own, tmp_path), ("sun", "moon", "lark", "owl")
    for classes in (None, names[:3]):
        ours, report = loaded(entry, classes=3, names=classes)
        assert str(report).endswith("; rows of all classes kept, in their order") and not report.new
        assert_detects_the_same(ours, theirs)
    _, report = loaded(entry, classes=4, names=names)  # nobody knows what its classes are
    assert str(report).endswith("; rows of 1 of 5 classes kept by name (background), 4 new (sun, moon, lark, ...)")


def test_norms_of_the_first_releases_have_no_epsilon(v1, entry, plain, monkeypatch):
    contents = Path(entry.removeprefix("torchvision:")).read_bytes()
    monkeypatch.setattr(weights, "_WITHOUT_EPS", (hashlib.sha256(contents).hexdigest()[:8],))
    theirs = copy.deepcopy(v1[0])
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    ours, _ = loaded(entry)
    assert_detects_the_same(ours, theirs)
    ratio = ours.backbone.frozen["stem"].conv1.scale / plain.backbone.frozen["stem"].conv1.scale
    variance = v1[1][f"{BODY}bn1.running_var"].float()
    assert_close(ratio, (1 + 1e-5 / variance).sqrt(), rtol=1e-6, atol=0)
    one, other = (model(small_batch()[0])[0]["scores"] for model in (ours, plain))
    assert one.shape != other.shape or (one - other).abs().max() > 0.01


@pytest.mark.parametrize(
    "release, edit, changes, message",
    [
        ("v2", {}, "", f"has no lateral2.bias, lateral3.bias, .*; {FOR_V2}"),
        ("v1", {}, V2, f"has no lateral2.scale, lateral2.shift, .*; {FOR_V1}"),
        ("v1", {}, "rpn.convs=2", f"has no rpn.further.0.bias, rpn.further.0.weight; {FOR_V1}"),
        ("v1", {"rpn.head.conv.1.0.bias": 0}, "", f"rpn.head.conv.1.0.weight missing; {NOT_ONE}"),
        ("v1", {f"{BODY}bn1.bias": None}, "", f"{BODY}bn1.bias missing; {NOT_ONE}"),
        ("v1", {f"{FPN}layer_blocks.1.0.weight": None}, "", f"{FPN}layer_blocks.1.0.weight missing; {NOT_ONE}"),
        ("v1", {"rpn.head.bbox_pred.bias": None}, "", f"rpn.head.bbox_pred.bias missing; {NOT_ONE}"),
        ("v1", {f"{HEAD}fc7.weight": None}, "", f"{HEAD}fc7.weight missing; {NOT_ONE}"),
        ("v1", {f"{PREDICTOR}cls_score.weight": None}, "", f"{PREDICTOR}cls_score.weight missing; {NOT_ONE}"),
        (
            "v2",
            {f"{FPN}inner_blocks.0.1.running_var": None},
            V2,
            f"{FPN}inner_blocks.0.1.running_var missing; {NOT_ONE}",
        ),
        ("v2", {f"{HEAD}0.1.running_mean": None}, V2, f"{HEAD}0.1.running_mean missing; {NOT_ONE}"),
        ("v2", {f"{FPN}inner_blocks.0.0.weight": None}, V2, f"{FPN}inner_blocks.0.0.weight missing; {NOT_ONE}"),
        ("v1", {f"{FPN}extra_blocks.p6.bias": 0}, "", rf"unexpected keys \({FPN}extra_blocks.p6.bias\); need "),
        ("v1", {f"{BODY}layer3.6.bn1.bias": 0}, "", rf"unexpected keys \({BODY}layer3.6.bn1.bias\); need a Faster"),
        ("v1", {}, "backbone=resnet101_fpn", f"{BODY}layer3.6.conv1.weight, .* missing; .* a pyramid of resnet101, or"),
        ("v1", {f"{FPN}inner_blocks.0.0.bias": torch.nan}, "", f"{FPN}inner_blocks.0.0.bias is not finite; use other"),
        ("v2", {f"{FPN}inner_blocks.0.1.running_var": -1}, V2, "the batch norm behind lateral2 is not .* 256 channels"),
        ("v1", {}, "pyramid.channels=128", r"lateral5.weight is \[256, 2048, .* match pyramid.channels"),
        ("v1", {}, "anchors.ratios=[1]", r"rpn.cls_logits.weight is \[3, .* match .* the number of anchors.sizes"),
        ("v1", {}, "head.dim=8", r"fc6.weight is \[16, .* match head.dim and roi.size"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused_in_a_line(request, tmp_path, release, edit, changes, message):
    state = request.getfixturevalue(release)[1]
    for key, value in edit.items():
        edit = edit | {key: None if value is None else torch.full_like(state.get(key, torch.ones(1)), value)}
    entry = saved({key: value for key, value in (state | edit).items() if value is not None}, tmp_path)
    with torch.device("meta"):
        model = build(entry, changes)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'w.pth'))}: {message}") as caught:
        load_weights(model, entry)
    assert "\n" not in str(caught.value)


def test_other_classes_need_names(entry):
    with torch.device("meta"):
        model = build(entry, classes=20)
    with pytest.raises(CheckpointError, match="of 91 classes with the background .the model has 21.; pass the names"):
        load_weights(model, entry)


@pytest.mark.parametrize("changes, message", [
    ("head.dim=8", r"fc6.weight is \[16, .* match head.dim"),
    ("weights=caffe:FILE", "a detector of torchvision\'s; set "),
])  # fmt: skip
def test_names_of_classes_change_no_refusal(entry, changes, message):
    file = entry.partition(":")[2]
    with torch.device("meta"):
        model = build(entry, changes.replace("FILE", file), classes=20)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, f"caffe:{file}" if "caffe" in changes else entry, classes=VOC_CLASSES)


def test_names_of_classes_are_as_many_as_the_models(entry):
    with torch.device("meta"):
        model = build(entry, classes=20)
    with pytest.raises(ValueError, match=r"classes must name the 20 classes of the model \(got 2 names\)"):
        load_weights(model, entry, classes=VOC_CLASSES[:2])


def test_a_classifier_is_the_trunk_of_a_pyramid(v1, plain, tmp_path):
    state = {key.removeprefix(BODY): value for key, value in v1[1].items() if key.startswith(BODY)}
    entry = saved(state | {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}, tmp_path)
    model, report = loaded(entry, "split=fpn")
    assert report.ignored == ["fc.bias", "fc.weight"] and not report.left and not report.remarks
    expected, fresh = by_layer(plain), build(entry, "split=fpn").state_dict()
    for name, value in model.state_dict().items():
        in_trunk = layer_name(name).startswith(("stem", "layer"))
        assert (name in report.loaded) == in_trunk == (name not in report.new)
        assert torch.equal(value, expected[layer_name(name)] if in_trunk else fresh[name])


def by_layer(model):
    return {layer_name(name): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize("changes", ["head.kind=conv", "head.tasks=ensemble", "head.kind=conv_fc"])
def test_a_box_head_of_another_kind_is_new(v1, plain, entry, changes):
    model, report = loaded(entry, changes, classes=20, names=VOC_CLASSES)
    assert report.remarks == (f"its box head is another, the model's is new (for its own {FOR_V1})",)
    assert report.new == [name for name in model.state_dict() if name.startswith("roi_heads.")]
    assert report.ignored == sorted(key for key in v1[1] if key.startswith("roi_heads.")) and not report.left
    expected = by_layer(plain)
    assert all(torch.equal(model.state_dict()[name], expected[layer_name(name)]) for name in report.loaded)


AGNOSTIC = "head.class_agnostic=true"


@pytest.mark.parametrize(
    "changes", ["head.loc=residual head.tasks=separate", AGNOSTIC, f"{AGNOSTIC} cascade=[0.5,0.6]"]
)
def test_a_box_regressor_of_another_kind_is_new_and_the_classifier_is_kept(entry, changes):
    with torch.device("meta"):
        model = build(entry, changes)
    report = load_weights(model, entry)
    assert report.remarks[0] == "its box regressor is another, the model's is new"
    fresh = [name for name in report.new if ".bbox_pred." not in name]
    assert fresh == [name for name in model.state_dict() if ".heads.loc." in name]
    stages = 2 if "cascade" in changes else 1
    assert sum(name.endswith("bbox_pred.weight") for name in report.new) == stages
    assert sum(name.endswith("cls_score.weight") for name in report.loaded) == stages


def test_every_stage_starts_from_the_weights_of_the_file(entry, plain):
    model, report = loaded(entry, "cascade=[0.5,0.6]")
    expected = by_layer(plain)
    assert not report.new
    assert all(torch.equal(value, expected[layer_name(name)]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("changes", ["anchors.sizes=[[16],[32],[64],[128],[256]]", "anchors.layout=centred"])
def test_other_anchors_are_remarked_on(entry, changes):
    with torch.device("meta"):
        model = build(entry, changes)
    end = "in their order; its RPN was trained with other anchors; for its own see configs/_base/coco_fpn.yaml"
    assert str(load_weights(model, entry)).endswith(end)


@torch.no_grad()
def test_a_backbone_alone_takes_trunk_and_pyramid(v1, entry):
    backbone = PyramidResNet(RESNET_UNITS["resnet50"], "output").eval()
    report = load_weights(backbone, entry)
    assert report.loaded == list(backbone.state_dict()) and not report.new and not report.ignored
    assert report.left == ["roi_heads", "rpn"]
    assert report.remarks == ("of a detector its backbone alone",)
    image = torch.rand(1, 3, 64, 96)
    for maps in backbone(image).values():
        assert_close(list(maps), list(v1[0].backbone(image).values()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("split", PYRAMID_SPLITS)
@torch.no_grad()
def test_every_copy_has_the_weights_of_the_file(entry, plain, split):
    model, report = loaded(entry, f"split={split} head.tasks=separate")
    assert report.loaded == list(model.state_dict()) and not report.ignored
    expected = by_layer(plain)
    assert all(torch.equal(value, expected[layer_name(name)]) for name, value in model.state_dict().items())
    image, (images, _) = torch.rand(1, 3, 64, 96), small_batch()
    assert_close(model.backbone(image), plain.backbone(image), rtol=0, atol=0)
    found = model(images, score_thresh=0.0)
    assert all(len(one["boxes"]) > 50 for one in found)
    assert_close(found, plain(images, score_thresh=0.0), rtol=0, atol=0)
