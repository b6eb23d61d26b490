"""The config: nine frozen sections, checked strictly, passed on section by section.

A config is the only place for a knob. Each section goes whole to the one room that it concerns. `configs/aerial.yaml`
lists every key with its unit and meaning; the descriptions below end up in the JSON schema that editors complete from.
Files are read in `config_file`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from geood.catalog.vocabulary import vocabulary
from geood.config.score_kinds import SCORES, check_known
from geood.constants import IGNORE
from geood.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """What all sections have in common: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def differs(self, *keys: str) -> bool:
        """Whether one of these keys has another value than its default."""
        return any(getattr(self, key) != type(self).model_fields[key].default for key in keys)


class SetConfig(Section):
    """One named data set to train on."""

    name: str = Field(description="its name in `geood data list`")
    folder: str = Field(".", description="where it lies, relative to data.root")
    split: str = Field("train", description="the part of it to train on")
    weight: Positive = Field(1.0, description="share of the crops that come from it, relative to the other sets")


class DataConfig(Section):
    """Scenes and labels, what the ids mean, and how crops are cut from them."""

    kind: Literal["scenes", "photos"] = Field(
        "scenes", description="scenes: GeoTIFFs with a CRS; photos: images without one, paired with labels by name"
    )
    root: str = Field(".", description="folder that the paths below start from; relative to this file")
    images: list[str] = Field([], description="images to train on: files, globs or folders of GeoTIFFs")
    labels: list[str] = Field([], description="their labels: rasters of class ids, or one vector file")
    sets: list[SetConfig] = Field(
        [],
        description="published data sets by name, instead of images, labels, classes and anomaly; see geood data list",
    )
    hold_out: list[str] = Field([], description="sets only: names of classes that are anomalies")
    hold_out_by: Literal["crop", "image"] = Field(
        "crop", description="sets only: leave out the crops that hold an anomaly, or every image that does"
    )
    label_ids: dict[int, int] = Field(
        {}, description="photos only: numbers in label files that stand for other numbers, such as 2 for 255"
    )
    label_attribute: str | None = Field(None, description="vector labels only: the attribute with the class id")
    validation_images: list[str] = Field(
        [], description="photos only: images to validate on; none: runs of neighbours are drawn from images"
    )
    validation_labels: list[str] = Field([], description="labels of the validation images")
    test_images: list[str] = Field([], description="images that `geood evaluate scenes` takes")
    test_labels: list[str] = Field([], description="labels of the test images")
    classes: dict[int, str] = Field(min_length=2, description="id and name of each class to learn")
    anomaly: list[int] = Field([], description="ids that are anomalies: kept out of training, sought in evaluation")
    resolution: Positive | None = Field(None, description="CRS units per pixel; null: that of the first image")
    crop_px: Annotated[int, Field(ge=64, multiple_of=32)] = Field(256, description="side of a training crop, pixels")
    crops: Annotated[int, Field(ge=1)] = Field(10_000, description="crops drawn and screened for training")
    min_valid: Share = Field(0.5, description="share of a crop that must hold data")
    block_m: Positive = Field(150.0, description="side of the blocks that separate training from validation, metres")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.15, description="share of blocks kept for validation")
    validation_crops: Annotated[int, Field(ge=1)] = Field(48, description="most crops used in one validation")
    scale_min: Annotated[float, Field(gt=0, le=1)] = Field(0.75, description="smallest scale in augmentation")
    scale_max: Annotated[float, Field(ge=1)] = Field(1.33, description="largest scale in augmentation")
    flips: Literal["none", "sideways", "both"] = Field(
        "both", description="how crops are mirrored at random; sideways: where up is up, as in photos of roads"
    )
    quarter_turns: bool = Field(True, description="turn crops by multiples of 90 degrees at random")
    brightness: Share = Field(0.1, description="largest random shift of all bands together, share of their range")
    contrast: Share = Field(0.1, description="largest random stretch of the bands, share")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes that read crops; 0: the training process")

    @model_validator(mode="before")
    @classmethod
    def _named_sets(cls, given: Any) -> Any:
        """Fill in what follows from the names of data sets: kind, classes, anomaly."""
        sets, held = (given.get(key) or [] for key in ("sets", "hold_out")) if isinstance(given, dict) else ([], [])
        if not sets or not isinstance(sets, list) or not isinstance(held, list):
            return given  # which the fields' own types explain, if they are wrong
        names: list[Any] = [entry.get("name") if isinstance(entry, dict) else None for entry in sets]
        if not all(isinstance(name, str) for name in (*names, *held)):
            return given
        try:
            classes, anomaly = vocabulary(names, held)
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
            raise ValueError("sets stand instead of images and labels; leave one of them out")
        missing = [key for key in ("images", "labels") if not getattr(self, key)]
        if missing and not self.sets:
            raise ValueError(f"{' and '.join(missing)} missing; name images and labels, or data sets under sets")
        if not self.sets and self.differs("hold_out", "hold_out_by"):
            raise ValueError("hold_out is for sets; give the ids under anomaly instead, and not under classes")
        if self.label_ids and self.kind == "scenes":
            raise ValueError("label_ids are for kind photos")
        return self

    @model_validator(mode="after")
    def _ids_make_sense(self) -> DataConfig:
        both = sorted(set(self.classes) & set(self.anomaly))
        if both:
            raise ValueError(f"ids {both} stand under both classes and anomaly; an id is one or the other")
        outside = [i for i in [*self.classes, *self.anomaly] if not 0 <= i < IGNORE]
        if outside:
            raise ValueError(f"ids {outside} are not in 0 to 254 (255 means ignore)")
        for side in ("test", "validation"):
            if bool(getattr(self, f"{side}_images")) != bool(getattr(self, f"{side}_labels")):
                raise ValueError(f"{side}_images and {side}_labels come together: give both or neither")
        if self.validation_images and self.kind == "scenes":
            raise ValueError("validation_images are for kind photos; scenes are split by blocks of ground")
        return self


class BandsConfig(Section):
    """Which bands are used and how their digital numbers become [0, 1]."""

    names: list[str] | None = Field(None, description="band names, in order; null: from the files")
    indexes: list[Annotated[int, Field(ge=1)]] | None = Field(None, description="bands used, from 1; null: all")
    nodata: float | None = Field(None, description="digital number that means no data; null: as the files say")
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = Field(0.5, description="percentile that becomes 0")
    high_percentile: Annotated[float, Field(gt=50, le=100)] = Field(99.5, description="percentile that becomes 1")

    @model_validator(mode="after")
    def _names_match_indexes(self) -> BandsConfig:
        if self.names and self.indexes and len(self.names) != len(self.indexes):
            raise ValueError(f"{len(self.names)} names for {len(self.indexes)} indexes; they must be as many")
        return self


class SegmenterConfig(Section):
    """The network that knows the classes."""

    network: Literal["ladder", "ldn121"] = Field("ladder", description="ldn121: the paper's, on densenet121")
    encoder: str = Field("densenet121", description="name of a timm encoder with features at strides 4 to 32")
    weights: str | None = Field(
        None, description="encoder weights: a local .safetensors file, imagenet (fetched by timm), or null: random"
    )
    decoder_channels: Annotated[int, Field(ge=8)] = Field(128, description="width of the decoder of network ladder")
    outlier: Literal["none", "head", "class"] = Field(
        "head", description="what else tells outliers: a two-channel head, one class more, or none"
    )
    checkpointing: bool = Field(
        False, description="less memory in training for a quarter more time: encoder blocks twice"
    )

    @model_validator(mode="after")
    def _network_is_whole(self) -> SegmenterConfig:
        if self.network == "ldn121" and self.differs("encoder", "decoder_channels"):
            raise ValueError("network ldn121 has its own encoder, densenet121, and decoder; leave out both keys")
        return self


class FlowConfig(Section):
    """The normalizing flow that makes the synthetic negatives."""

    network: Literal["plain", "denseflow-small", "denseflow-25-6", "denseflow-45-6", "denseflow-74-10"] = Field(
        "plain", description="plain: as the keys below say; denseflow-25-6: the paper's line of flows"
    )
    levels: Annotated[int, Field(ge=1, le=4)] = Field(
        3, description="number of squeezes; sizes are multiples of 2^levels"
    )
    steps: Annotated[int, Field(ge=1)] = Field(4, description="coupling steps on each level")
    layers: Annotated[int, Field(ge=1)] = Field(3, description="densely connected layers in a coupling net")
    growth: Annotated[int, Field(ge=1)] = Field(32, description="channels that each of those layers adds")
    checkpointing: bool = Field(
        False, description="less memory in training for more time: coupling nets computed twice"
    )

    @model_validator(mode="after")
    def _network_is_whole(self) -> FlowConfig:
        if self.network != "plain" and self.differs("levels", "steps", "layers", "growth"):
            raise ValueError(f"network {self.network} has its own levels, steps, layers and growth; leave them out")
        return self


class NegativesConfig(Section):
    """The synthetic negatives pasted into training crops."""

    source: Literal["flow", "noise", "colour", "shuffled", "folder", "none"] = Field(
        "flow", description="what is pasted; flow: the method, the others: what it is compared with"
    )
    folder: str | None = Field(None, description="source folder only: a folder of photographs, relative to data.root")
    patches: Annotated[int, Field(ge=1)] = Field(1, description="patches in each crop")
    patch_min_px: Annotated[int, Field(ge=8, multiple_of=8)] = Field(16, description="shortest side of a patch, pixels")
    patch_max_px: Annotated[int, Field(ge=8, multiple_of=8)] = Field(72, description="longest side of a patch, pixels")
    shape: Literal["rectangle", "blob"] = Field(
        "blob", description="outline of a patch: its whole box, or an irregular blob in it"
    )
    feather_px: Annotated[int, Field(ge=0)] = Field(
        0, description="width of the rim over which a patch fades into the image, pixels; 0: a hard edge"
    )
    tint: Annotated[float, Field(ge=0)] = Field(
        0.3, description="spread of random changes of each band's contrast and level in a patch; 0: none"
    )
    temperature: Positive = Field(1.0, description="spread of the flow's latent samples; 1: as learned")

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
        if (self.source == "folder") != (self.folder is not None):
            raise ValueError("source folder and the key folder come together: name the folder of photographs")
        return self


class LossConfig(Section):
    """The terms of the joint loss, their weights, and which network each one moves; the class term has weight 1."""

    negative: Literal["jsd", "kl_uniform", "kl_softmax"] = Field(
        "jsd", description="divergence on negatives: Jensen-Shannon, KL(uniform | softmax) or KL(softmax | uniform)"
    )
    negative_weight: Annotated[float, Field(ge=0)] = Field(0.3, description="weight of that term; the paper's is 0.03")
    negative_to_flow: bool = Field(True, description="whether that term also moves the flow, through its samples")
    class_to_flow: bool = Field(False, description="whether the class term does, through the pixels around a patch")
    flow_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight of the flow's bits per dimension")
    outlier_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="weight of the cross-entropy of the outlier output, see segmenter.outlier"
    )


class TrainConfig(Section):
    """The three stages: segmenter alone, flow alone, both together."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of everything random")
    stages_from: str | None = Field(
        None, description="a finished run with the same data and networks whose first two stages are taken over"
    )
    batch: Annotated[int, Field(ge=2)] = Field(8, description="crops in a batch, on each device")
    joint_batch: Annotated[int, Field(ge=2)] | None = Field(
        None, description="crops in one of the third stage, if others"
    )
    segmenter_steps: Annotated[int, Field(ge=0)] = Field(8000, description="steps of the first stage")
    segmenter_lr: Positive = Field(4e-4, description="its learning rate")
    flow_steps: Annotated[int, Field(ge=0)] = Field(8000, description="steps of the second stage")
    flow_lr: Positive = Field(1e-3, description="its learning rate")
    joint_steps: Annotated[int, Field(ge=0)] = Field(4000, description="steps of the third stage")
    joint_segmenter_lr: Positive = Field(2e-5, description="the segmenter's learning rate there")
    joint_flow_lr: Annotated[float, Field(ge=0)] = Field(
        1e-5, description="the flow's learning rate there; 0: the flow stays as it is"
    )
    encoder_lr_factor: Positive = Field(1.0, description="the encoder's learning rates, as a factor of the segmenter's")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        100, description="steps over which rates rise in the segmenter's stages, at most a tenth of each"
    )
    flow_warmup_steps: Annotated[int, Field(ge=0)] = Field(100, description="the same for the flow in its own stage")
    segmenter_last_lr: Positive = Field(1e-6, description="where the segmenter's rates end, along a cosine")
    flow_last_lr: Positive = Field(1e-5, description="where the flow's rates end; not below it: constant")
    flow_schedule: Literal["cosine", "exponential"] = Field("cosine", description="how the flow's rates fall")
    flow_optimizer: Literal["adam", "adamax"] = Field("adam", description="adamax: the paper's")
    adam_epsilon: Positive = Field(
        1e-8, description="term that keeps the optimizers' steps finite; the paper's is 1e-7"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-4, description="decoupled weight decay of the segmenter")
    average_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of a moving average of all weights, which is what is kept; 0: none"
    )
    validate_every: Annotated[int, Field(ge=1)] = Field(500, description="steps between validations and checkpoints")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="what to train on")
    devices: Annotated[int, Field(ge=1)] = Field(1, description="how many of them")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field("32-true", description="arithmetic of training")


LEAST_FEATURES = 100  # in a bank that a mixture is fitted to
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)  # those a bundle has thresholds for


def _a_known_rate(rate: float) -> float:
    if rate not in FALSE_POSITIVE_RATES:
        raise ValueError(f"got {rate}; a bundle has thresholds for the rates {FALSE_POSITIVE_RATES}")
    return rate


def _enough_features(count: int) -> int:
    if 0 < count < LEAST_FEATURES:
        raise ValueError(f"got {count}; statistics need {LEAST_FEATURES} features at least, or 0 for none")
    return count


class ScoreConfig(Section):
    """How logits become an anomaly score, and where it is cut by default."""

    kind: Annotated[str, AfterValidator(check_known)] = Field(
        "jsd", description="the score written by predict", json_schema_extra={"enum": list(SCORES)}
    )
    temperature: Positive = Field(2.0, description="logits are divided by this before the softmax")
    feature_bank: Annotated[int, Field(ge=0, le=100_000), AfterValidator(_enough_features)] = Field(
        0, description="inlier features kept for the scores knn and gmm; 0: none, a few thousand where they are wanted"
    )
    smooth_px: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="half the window of a guided filter that smooths scores along the image, pixels; 0: none"
    )
    smooth_contrast: Annotated[float, Field(ge=1e-3)] = Field(
        0.1, description="contrast of the image that counts as an edge to that filter, share of the bands' range"
    )
    fpr: Annotated[float, AfterValidator(_a_known_rate)] = Field(
        0.01,
        description="share of inlier pixels above the default threshold",
        json_schema_extra={"enum": list(FALSE_POSITIVE_RATES)},
    )

    def temperature_of(self, kind: str) -> float:
        """Return the temperature of a kind of score: `temperature` for the divergence and for `kind` itself, else 1."""
        return self.temperature if kind in ("jsd", self.kind) else 1.0


class PredictConfig(Section):
    """How a scene is tiled and its score map cut into polygons."""

    tile_px: Annotated[int, Field(ge=32, multiple_of=32)] = Field(
        1024, description="side of a tile's kept part, pixels"
    )
    halo_px: Annotated[int, Field(ge=0, multiple_of=32)] = Field(64, description="context read around it, pixels")
    batch: Annotated[int, Field(ge=0)] = Field(
        0, description="tiles scored at once on a GPU, 0: as many as fit; a CPU takes one by one"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what networks compute in; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    compile: bool = Field(False, description="let torch.compile work on the network first: minutes, then faster")
    min_area_m2: Annotated[float, Field(ge=0)] = Field(
        0.0, description="polygons smaller than this are left out, square metres"
    )
    connectivity: Literal[4, 8] = Field(8, description="8: pixels that touch at corners make one polygon")
    simplify_m: Annotated[float, Field(ge=0)] = Field(
        0.0, description="details of outlines about this large are smoothed away, metres; 0: outlines follow pixels"
    )
    max_polygons: Annotated[int, Field(ge=1)] = Field(
        1_000_000, description="more polygons than this are an error: the threshold is too low to be of use"
    )


class Config(Section):
    """A whole config; each section is documented on its own class."""

    data: DataConfig
    bands: BandsConfig = BandsConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    flow: FlowConfig = FlowConfig()
    negatives: NegativesConfig = NegativesConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        multiple, source = 2**self.flow.levels, self.negatives.source
        for key in ("patch_min_px", "patch_max_px"):
            if source == "flow" and getattr(self.negatives, key) % multiple:
                raise ValueError(f"negatives.{key} must be a multiple of 2^flow.levels = {multiple}")
        if source != "none" and self.negatives.patch_max_px > self.data.crop_px // 2:
            raise ValueError(
                f"negatives.patch_max_px {self.negatives.patch_max_px} is over half of data.crop_px "
                f"{self.data.crop_px}; make the patch smaller or the crop larger"
            )
        return self
