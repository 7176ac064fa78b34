"""Makes the reduced numbers in tests/data from the full ones.

python tests/reduce_goldens.py ../shared/golden
"""

import importlib.util
import io
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from goldens import DATA, Golden, load_arrays, load_json, post_processing
from rebuilt_weights import DIGESTS, digest

Steps = tuple[int, ...]
# The steps along the first axes of each array whose name matches a pattern. Other arrays are left
# out. Steps along anchors are not multiples of 3, because each cell has three anchors.
YOLACT_RUN: dict[str, dict[str, Steps]] = {
    "calib": {".*": ()},
    "heads": {"loc|priors": (61,), "mask": (53,)},
    "conf_raw": {"conf_raw": (71,)},
    "proto": {"proto": (11, 11)},
    "train": {
        r"target\d|masks\d_packed|num_crowds|conf_t|idx_t|bn_frozen_neg_packed": (),
        r"bn_(train|frozen)_grad/.*|bn_train_after/backbone\.bn1\..*": (),
    },
}
DETECTIONS = {r"(fast|fastcc|trad)_(box|class|score)": ()}
EVERY_MASK = 17
POST = {"wh|boxes|fast_box": (), "masks_packed|(mask_)?scores|classes|soft_masks": (EVERY_MASK,)}
YOLACT_FUNCTIONS: dict[str, dict[str, Steps]] = {
    "augment": {".*": ()},
    "box_utils": {".*": ()},
    "dcn": {r"case\d_(?!col).*": ()},
    "detect_cases": {".*": ()},
    "loss_only": {
        r"yolact_(base_config|base_config\+masks_to_train|resnet50_pascal_config)/grad_.*_sub": (7,),
        r"yolact_(base_config|base_config\+masks_to_train|resnet50_pascal_config)/.*": (),
    },
    "match": {r"yolact_(?!plus).*": ()},
    "nms_trad": {".*": ()},
    "priors": {".*": ()},
    "transforms": {"yolact_(base|im400)_config/base_stride4": (1, 1, 5, 5)},
}
TWO_STAGE: dict[str, dict[str, Steps]] = {
    "anchors": {r"tv_all|(mrb|mmdet|d2_off0)_lvl[0-2]": (29,), "(?!d2_off5).*": ()},
    "assign": {"(?!.*(maxov|_ign|gtmaxfalse|giou|iof)).*": ()},
    "box_coder": {".*": ()},
    "data_solver": {r"s?l1_.*": ()},
    "fpn_pool": {r".*_p14": (1, 1, 3, 3), ".*": ()},
    "mask_ops": {r"polys_json|bitmaps|boxes_clipped|.*_target28": ()},
    "nms": {".*": ()},
    "roi_align": {r"out_.*_p14": (1, 1, 3, 3), r"gin_.*": (1, 1, 2, 3), ".*": ()},
    "traj_mmdet": {".*": ()},
    "traj_mrb": {".*": ()},
}
RCNN_RUN: dict[str, Steps] = {
    r"names|shapes|gain|offset|all_keys|buf/.*|net_shape|scale_factor\d|ori_shape\d|gt_(boxes|labels|polys).*": (),
    r"p\d_sub": (1, 4),
    "rpn_(logits|deltas)0": (1, 1, 7, 7),
    "rpn_(logits|deltas)1": (1, 1, 5, 5),
    "rpn_(logits|deltas)2": (1, 1, 3, 3),
    "rpn_(logits|deltas)[34]": (),
    r"proposals\d|(raw|det|roi)_(boxes|scores|classes|labels)(_x15_)?\d": (),
    r"(mask_prob28_|raw_masks28_|det_masks28_)\d|det_masks(_x15_)?\d_packed": (EVERY_MASK,),
    "(loss|gnorm)/.*": (),
}
RCNN = ("tv_fasterrcnn", "tv_maskrcnn", "d2_maskrcnn", "mmdet_fasterrcnn", "mmdet_maskrcnn", "mrb_maskrcnn")
META = ("seed", "num_classes", "stride_conf", "stride_mask")
TRAIN = ("sgd_lr1e-4_m.9_wd5e-4_frozen_bn", "sgd_param_norm_after")


def thinned(arrays: dict[str, np.ndarray], patterns: dict[str, Steps]) -> Golden:
    """Returns every n-th entry of the arrays whose name matches a pattern, with the steps."""
    result = Golden()
    for name, array in arrays.items():
        steps = next((steps for pattern, steps in patterns.items() if re.fullmatch(pattern, name)), None)
        if steps is not None:
            result[name] = array[tuple(slice(None, None, step) for step in steps)]
        if steps:
            result[f"steps/{name}"] = np.array(steps)
    return result


def of_yolact_run(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields the files of one run of dbolya/yolact."""
    for file, patterns in YOLACT_RUN.items():
        yield f"{file}.npz", thinned(load_arrays(folder / f"{file}.npz"), patterns)
    yield "detect.npz", candidates(load_arrays(folder / "detect.npz"))
    yield "post.npz", thinned(post_processing(folder), POST)
    meta, train = load_json(folder / "meta.json"), load_json(folder / "train.json")
    yield "meta.json", {key: meta[key] for key in META} | {"keys": {name: entry[:1] for name, entry in meta["keys"].items()}}
    kinds = {kind: {key: train[kind][key] for key in ("losses", "grad_norm", "grad_norm_total")} for kind in ("bn_train", "bn_frozen")}
    yield "train.json", kinds | {key: train[key] for key in TRAIN if key in train}


def candidates(detect: Golden) -> Golden:
    """Returns the candidates for detections, with 0 for scores that no suppression rule uses."""
    result = thinned(detect, DETECTIONS)
    lowest = min(detect[f"{rule}_score"].min() for rule in ("fast", "fastcc", "trad"))
    scores = np.where(detect["cand_conf"] >= lowest, detect["cand_conf"], 0)
    scores[:, 0] = 0
    boxes = detect["decoded_boxes"][detect["cand_idx"]]
    return Golden(result | {"cand_conf": scores, "decoded_boxes": boxes, "cand_idx": np.arange(len(boxes))})


def reduced(golden: Path) -> Iterator[tuple[str, Any]]:
    """Yields all reduced files: arrays as `.npz`, other values as `.json`."""
    for folder in sorted(path.parent for path in (golden / "yolact").glob("*/meta.json")):
        yield from ((f"yolact/{folder.name}/{name}", content) for name, content in of_yolact_run(folder))
    for name, patterns in YOLACT_FUNCTIONS.items():
        yield f"yolact/functions/{name}.npz", thinned(load_arrays(golden / "yolact" / "functions" / f"{name}.npz"), patterns)
    for name in ("eval", "loss_only"):
        yield f"yolact/functions/{name}.json", load_json(golden / "yolact" / "functions" / f"{name}.json")
    for name, patterns in (TWO_STAGE | dict.fromkeys(RCNN, RCNN_RUN)).items():
        yield f"two_stage/{name}.npz", thinned(load_arrays(golden / "two_stage" / f"{name}.npz"), patterns)


def pictures(golden: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the inputs of all runs, RGB."""
    yolact = load_arrays(golden / "yolact" / "yolact_resnet50_s0" / "feats.npz")["image_bgr"]
    two_stage = load_arrays(golden / "two_stage" / "tv_maskrcnn.npz")
    for i in (0, 1):
        yield f"yolact{i}", yolact[i, :, :, ::-1]
        yield f"two_stage{i}", two_stage[f"img{i}"]
    yield "transforms", load_arrays(golden / "yolact" / "functions" / "transforms.npz")["image_bgr"][:, :, ::-1]


def digests(golden: Path) -> dict[str, str]:
    """Computes digests of the weights of all runs, by the rule that comes with the full numbers."""
    spec = importlib.util.spec_from_file_location("rebuild", golden / "rebuild.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    runs = [path.parent for path in sorted((golden / "yolact").glob("*/meta.json"))]
    result = {f"yolact/{folder.name}": digest(rule.yolact_state_dict(folder)) for folder in runs}
    return result | {f"two_stage/{name}": digest(rule.rcnn_state_dict(golden / "two_stage" / f"{name}.npz")) for name in RCNN}


def encode(content: Any) -> bytes:
    """Makes a compressed file of arrays or of other values."""
    file = io.BytesIO()
    if isinstance(content, Golden):
        np.savez(file, **content)
    else:
        file.write(json.dumps(content, separators=(",", ":")).encode())
    return lzma.compress(file.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main(golden: Path) -> None:
    for name, content in reduced(golden):
        path = DATA / f"{name}.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(content))
    (DATA / "pictures").mkdir(exist_ok=True)
    for name, image in pictures(golden):
        cv2.imwrite(str(DATA / "pictures" / f"{name}.png"), image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    DIGESTS.write_text(json.dumps(digests(golden), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
