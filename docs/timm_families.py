"""Which of timm's families to_hat converts: writes docs/timm.md.

    python docs/timm_families.py [MODULE | MODEL ...]

One small model of each of timm's modules, and of other families in some, is converted with random
weights at its own image size.
"works" means: with task 0 finished, every parameter that tasks share is drawn anew, what is
protected is put back, and the logits of task 0 are the same bits. Without arguments all modules
are tried and the table is written, which takes about a quarter of an hour; with arguments those
rows are printed.
"""

from __future__ import annotations

import gc
import re
import sys
import warnings
from pathlib import Path

import timm
import torch

from maskcl.nn import ConversionError, to_hat

TASKS, CLASSES = 2, 3
# A small model of each module, where the first by name would be large.
SMALL = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convnext": "test_convnext",
    "convit": "convit_tiny",
    "crossvit": "crossvit_tiny_240",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fastvit": "fastvit_t8",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m_enc",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "twins": "twins_svt_small",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vitamin": "vitamin_small_224",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
# Other families of modules that define several.
MORE = (
    "botnet26t_256",
    "lambda_resnet26t",
    "repvgg_a0",
    "mobileone_s0",
    "convnextv2_atto",
    "mixnet_s",
    "tinynet_e",
    "tf_efficientnet_b0",
    "ghostnetv2_100",
    "convformer_s18",
    "resmlp_12_224",
    "lcnet_035",
    "tf_mobilenetv3_small_minimal_100",
    "mobilevitv2_050",
    "regnety_002",
    "ecaresnet26t",
    "flexivit_small",
)
# Not created: above this many parameters a table row is not worth the memory.
LARGEST = 200e6


def representative(module: str) -> str:
    """The model that stands for one of timm's modules."""
    return SMALL.get(module) or timm.list_models(module=module)[0]


def outcome(name: str) -> str:
    """The word works, or the sentence with which a model is refused."""
    with torch.device("meta"):
        size = sum(p.numel() for p in timm.create_model(name).parameters())
    if size > LARGEST:
        return f"not tried: {size / 1e6:.0f} million parameters"
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES)
    x = torch.randn(2, *model.default_cfg["input_size"])
    warm(model, x)
    note = "works"
    try:
        net = to_hat(model, TASKS, x, classes=[CLASSES] * TASKS).eval()
    except ConversionError as error:
        if not str(error).startswith("to_hat: classes"):
            return str(error)
        try:
            net = to_hat(model, TASKS, x).eval()
        except ConversionError as second:
            return str(second)
        note = "works with one head for all tasks (classes=None)"
    with torch.no_grad():  # mostly open: half of the units closed silences some networks
        net.embeddings[0].add_(1.0)
    net.finish_task(0)
    with torch.no_grad(), net.task(0):
        before = net(x)
        protection = net.protection()
        saved = protection.snapshot()
        for parameter in protection.parameters:
            parameter.copy_(torch.randn_like(parameter) * parameter.std().nan_to_num(1))
        moved = not torch.equal(net(x), before)
        protection.restore_(saved)
        kept = torch.equal(net(x), before) and bool(before.isfinite().all())
    if not kept:
        return "NOT KEPT"
    return note if moved else "kept, but drawing the weights anew changed nothing"


def warm(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Give norms the statistics of ``x``: with fresh ones a deep network's outputs are constant."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)


def table(every: list[tuple[str, str, str]]) -> str:
    """The Markdown page."""
    rows = [row for row in every if row[1] not in MORE]
    works = sum(result.startswith("works") for _, _, result in rows)
    lines = [
        "# timm's families and `to_hat`",
        "",
        f"Made by `docs/timm_families.py` with timm {timm.__version__}: one small model of each of"
        f" timm's {len(rows)} modules,",
        f"{works} of which work: with task 0 finished, all shared weights drawn anew and the"
        " protected ones put",
        "back, its logits are the same bits. The others are refused with the sentence given.",
        "",
        *_rows(rows),
        "",
        "Other families of the same modules:",
        "",
        *_rows([row for row in every if row[1] in MORE]),
    ]
    return "\n".join(lines) + "\n"


def _rows(rows: list[tuple[str, str, str]]) -> list[str]:
    head = ["| module | model | result |", "| --- | --- | --- |"]
    return head + [f"| {module} | `{name}` | {_cell(result)} |" for module, name, result in rows]


def _cell(sentence: str) -> str:
    """Without the lines of the installed files, which differ from machine to machine."""
    sentence = re.sub(r' at "[^"]*", line \d+', "", sentence)
    return sentence.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Print every row as it is found; without arguments write the page."""
    warnings.filterwarnings("ignore")
    rows = []
    modules = {name: m for m in timm.list_modules() for name in timm.list_models(module=m)}
    for asked in sys.argv[1:] or [*timm.list_modules(), *MORE]:
        module = modules.get(asked, asked)
        name = asked if asked in modules else representative(asked)
        rows.append((module, name, outcome(name)))
        print(*rows[-1], sep=" | ", flush=True)
        gc.collect()
    if not sys.argv[1:]:
        Path(__file__).with_name("timm.md").write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
