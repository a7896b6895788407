"""What a run does when nobody says otherwise: a table for each kind of data.

A preset is a `TrainConfig` whose values fill the gaps of the caller's.
"""

from cvt.train.config import AugmentConfig, DistillConfig, MixConfig, OptimConfig, TrainConfig

# Scans of 8x8 pixels, enlarged twofold so that a crop can shift and stretch them by parts of a
# pixel; a stem of stride 2 then gives every pixel a token. Mirroring would make other shapes of
# digits, and colour has no meaning here. Measured, see the slow test.
DIGITS = TrainConfig(
    model="cvt_nano_32",
    image_size=16,
    epochs=30,
    batch_size=64,
    num_workers=0,
    optim=OptimConfig(base_lr=16e-3, weight_decay=0.05, warmup_epochs=2.0, clip_grad=1.0),
    augment=AugmentConfig(
        crop="random_resized",
        scale=(0.6, 1.0),
        ratio=(0.8, 1.25),
        hflip=0.0,
        color_jitter=0.0,
        auto_augment="off",
        re_prob=0.0,
    ),
    mix=MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.1),
)

# Pictures of up to 64 pixels, such as CIFAR: a random part of 8 % of 32x32 pixels shows nothing,
# so the whole picture is shifted instead. Mixing and erasing take the place of more data.
SMALL = TrainConfig(
    model="cvt_mini_32",
    epochs=100,
    batch_size=256,
    optim=OptimConfig(base_lr=1e-3, weight_decay=0.05, warmup_epochs=5.0, clip_grad=1.0),
    augment=AugmentConfig(
        crop="pad", hflip=0.5, color_jitter=0.0, auto_augment="rand-m5-mstd0.5-inc1", re_prob=0.25
    ),
    mix=MixConfig(mixup=0.2, cutmix=1.0, smoothing=0.1),
)

# The paper's ImageNet recipe (facts: microsoft/CvT f851e68, YAML): DeiT's rule of 5e-4 for 512
# images, which is the YAML's 2e-3 at 2048; the paper's 0.02 is a misprint of that. Clipping is
# not in it, but is harmless at this norm and guards small batches.
PHOTOGRAPHS = TrainConfig(
    model="cvt_13",
    image_size=224,
    epochs=300,
    batch_size=256,
    optim=OptimConfig(base_lr=5e-4, weight_decay=0.05, warmup_epochs=5.0, clip_grad=5.0),
    augment=AugmentConfig(
        crop="random_resized",
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
    ),
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
)

# Without an accelerator the presets above would take days: a small network sees fewer, smaller
# pictures, and short runs do better without mixing. Small pictures are decoded so quickly that
# worker processes only take cores from the network: on two, 324 images/s without and 244 with.
SMALL_ON_CPU = TrainConfig(
    model="cvt_nano_32",
    epochs=10,
    batch_size=64,
    num_workers=0,
    optim=OptimConfig(base_lr=8e-3, warmup_epochs=1.0),
    augment=AugmentConfig(auto_augment="off", re_prob=0.0),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)
PHOTOGRAPHS_ON_CPU = TrainConfig(
    model="cvt_nano_32",
    model_args={"embed_kernel": [7, 3, 3], "embed_stride": [4, 2, 2], "embed_padding": [3, 1, 1]},
    image_size=128,
    epochs=30,
    batch_size=32,
    optim=OptimConfig(base_lr=8e-3, warmup_epochs=2.0, clip_grad=1.0),
    augment=AugmentConfig(scale=(0.35, 1.0), auto_augment="off", color_jitter=0.2, re_prob=0.0),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# Weights to start from. How far an update of Adam's goes hardly depends on the batch, and small
# data sets have small batches: scaled by them, the rate of a recipe for large batches would
# leave the weights where they are. So the peak is one for all batches, and the layers near the
# pictures, of which a deep network has many, learn more slowly (BEiT, arXiv 2106.08254). Measured
# from `demo` on ten classes of Tiny ImageNet and on digits (CHANGELOG.md has figures), where
# twice this did a little better still; not on the paper's networks, which are deeper.
FINE_TUNING = TrainConfig(
    epochs=20,
    optim=OptimConfig(
        lr=2e-3, weight_decay=0.05, warmup_epochs=1.0, layer_decay=0.75, clip_grad=1.0
    ),
    augment=AugmentConfig(scale=(0.35, 1.0)),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# A classifier alone, on features that stay as they are, takes more than ten times as much.
PROBING = TrainConfig(
    epochs=20,
    optim=OptimConfig(lr=3e-2, weight_decay=0.0, warmup_epochs=1.0, layer_decay=1.0, clip_grad=1.0),
    augment=AugmentConfig(scale=(0.35, 1.0)),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# What no kind of data asks to be different.
ALWAYS = TrainConfig(
    ema_decay=0.0,
    optim=OptimConfig(opt="adamw", momentum=0.9, layer_decay=1.0),
    augment=AugmentConfig(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), re_mode="pixel", repeats=1),
    mix=MixConfig(loss="ce"),
)

# Where there is a teacher: the defaults of DeiT's code (facts: facebookresearch/deit 7e160fe,
# main.py), of the kind that its paper finds best. For the soft kind the paper (arXiv 2012.12877,
# section 6.1) has alpha 0.1 and tau 3.
TAUGHT = TrainConfig(distill=DistillConfig(kind="hard", alpha=0.5, tau=1.0))
