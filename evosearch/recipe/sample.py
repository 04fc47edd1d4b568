"""The sample of texts over which a recipe's method computes statistics of its models."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evosearch.documents import Document

PREFIX = "sample:"  # of the key of a sample's digest among those of a recipe's models

FilePath = Annotated[str, Field(min_length=1, max_length=4096)]


class Sample(Document):
    """Texts that statistics of the models are computed over: prompts of a suite's task, or a file of texts.

    Either `suite` and `task`, or `text`.
    """

    suite: FilePath | None = None
    """A suite's file, whose prompts are read as they are scored, without right answers."""
    task: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Name of one of the suite's tasks."""
    split: Literal["search"] = "search"
    """The split; the others are kept for comparisons."""
    text: FilePath | None = None
    """A file of texts: of a `.jsonl` file the key `text` of every line, of any other its paragraphs."""
    documents: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 256
    """Number of documents, from the first on; all if there are fewer."""
    tokens: Annotated[int, Field(ge=2, le=32_768, strict=True)] = 512
    """Largest number of tokens of a document; of a longer prompt the last ones are read, of a longer text the first."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.suite is None) == (self.text is None):
            raise ValueError("exactly one of suite and text is required")
        if (self.suite is None) != (self.task is None):
            raise ValueError(
                "suite and task are given together" if self.task is None else "task is not valid with text"
            )
        return self

    @property
    def key(self) -> str:
        """Return the key of the sample's digest among those of models: it names the texts for people."""
        source = self.text if self.suite is None else f"{self.suite}#{self.task}@{self.split}"
        return f"{PREFIX}{source} ({self.documents} documents of {self.tokens} tokens)"
