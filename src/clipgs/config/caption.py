"""The section `caption`."""

from typing import Any, Literal

from pydantic import field_validator

from clipgs.config.fields import Section, section, setting


class Coca(Section):
    """The model that writes captions for `coca` and `consensus`."""

    name: str = setting("coca_ViT-L-14", "name", assumed=True, min_length=1)
    """This CoCa model of open_clip writes the captions. local-dir:FOLDER loads one from a folder."""
    pretrained: str = setting("mscoco_finetuned_laion2b_s13b_b90k", "tag or path", assumed=True, min_length=1)
    """The weights are given by a tag of open_clip, or by a .safetensors or .pt file. local-dir has its own."""
    views: int = setting(8, "images", assumed=True, ge=1)
    """CoCa sees this many images of an object, spread evenly over all that show it."""
    candidates: int = setting(5, "captions", assumed=True, ge=1, le=100)
    """CoCa writes this many captions for each image."""
    top_p: float = setting(0.9, "probability", assumed=True, gt=0, le=1)
    """Each word is sampled from the most likely words that together reach this probability."""


class Http(Section):
    """The server that writes captions for `http`: any that answers as OpenAI's chat completions do."""

    address: str = setting("http://localhost:8000/v1", "URL", runtime=True, min_length=1)
    """Requests go to this address with /chat/completions after it."""
    model: str | None = setting(None, "name", min_length=1)
    """The server has this vision-language model under this name. `http` needs it."""
    prompt: str = setting(
        "These pictures show one 3D object from different sides. Describe the object in one English sentence of at "
        "most 25 words: what it is, its parts, shape, colours and materials. State only what can be seen. Do not "
        "mention pictures, views, rendering or background. Answer with that sentence alone.",
        "text",
        assumed=True,
        min_length=1,
    )
    """The model gets this text with the images."""
    views: int = setting(4, "images", assumed=True, ge=1)
    """The model sees this many images of an object in each request, spread evenly over all that show it."""
    candidates: int = setting(3, "captions", assumed=True, ge=1, le=100)
    """The model is asked this many times for a caption, and the teacher picks the best answer. With 1 no teacher is
    needed."""
    temperature: float | None = setting(0.7, "number", assumed=True, ge=0, le=2)
    """Words are sampled at this temperature. 0 gives equal candidates. null leaves it to the server."""
    max_tokens: int | None = setting(300, "tokens", assumed=True, ge=1)
    """An answer ends after this many tokens. A model that thinks before it answers needs more. null leaves it to the
    server."""
    extra: dict[str, Any] = setting({}, "fields")
    """These fields are added to each request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    token_variable: str = setting("OPENAI_API_KEY", "name", runtime=True, min_length=1)
    """This environment variable holds the access token, if the server needs one."""
    parallel: int = setting(8, "requests", runtime=True, ge=1, le=256)
    """A job waits for this many answers at the same time."""
    per_minute: float = setting(600.0, "requests per minute", runtime=True, gt=0)
    """A job sends at most this many requests per minute."""
    retries: int = setting(8, "times", runtime=True, ge=0, le=50)
    """A request is sent again this many times after a temporary error, with growing pauses: with 8, for about a
    minute."""
    timeout_seconds: float = setting(120.0, "seconds", runtime=True, gt=0)
    """A request is sent again if its answer is not whole after this long."""

    @field_validator("extra")
    @classmethod
    def _adds(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & {"model", "messages", "temperature", "max_tokens", "n", "stream"}):
            raise ValueError(f"must not hold {', '.join(own)}, which clipgs sets itself")
        return value


class Caption(Section):
    """Where the caption of an object comes from."""

    captioner: Literal["catalog", "cap3d", "coca", "consensus", "http"] = setting("catalog", "name")
    """`catalog` takes the source's own text, and `cap3d` a CSV of captions. `coca` and `consensus` let CoCa caption the
    images of `teacher.images`. CoCa picks the best caption with `coca`, the teacher with `consensus`. `http` asks a
    vision-language model on a server for captions of these images, and the teacher picks the best."""
    cap3d: str | None = setting(None, "path or URL")
    """This CSV has a uid and a caption per row, as Cap3D publishes it. A header is optional. `cap3d` needs the CSV."""
    fallback: Literal["catalog", "fail", "coca", "consensus", "http"] = setting("catalog", "name")
    """This captioner serves objects that the CSV does not list. `fail` records them as failed."""
    max_characters: int = setting(300, "characters", assumed=True, ge=16)
    """A longer caption is cut between two words."""
    min_score: float | None = setting(None, "cosine", assumed=True, ge=-1, le=1)
    """A caption is marked if its mean cosine with the teacher features of the object's images is lower. null means that
    no caption is marked."""
    coca: Coca = section(Coca)
    http: Http = section(Http)

    @property
    def writer(self) -> str | None:
        """Which of `coca`, `consensus` and `http` writes captions from images, if any."""
        name = self.fallback if self.captioner == "cap3d" else self.captioner
        return name if name in ("coca", "consensus", "http") else None

    @property
    def uses_coca(self) -> bool:
        """Whether CoCa writes captions."""
        return self.writer in ("coca", "consensus")

    @property
    def teacher_chooses(self) -> bool:
        """Whether the teacher chooses among captions, by the features of the images."""
        return self.writer == "consensus" or (self.writer == "http" and self.http.candidates > 1)

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher scores captions, by the features of the images."""
        return self.teacher_chooses or self.min_score is not None
