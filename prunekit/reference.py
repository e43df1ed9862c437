"""`Reference`: where a method was published, and what its authors' code is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """Where a method was published, and with which code of its authors it was compared.

    A policy or method names its own as the class attribute `reference`; those that nobody published have None. Fields
    are None where prunekit does not know.

    Attributes:
        name: what its authors call it.
        arxiv: number of the paper at arXiv.
        year: of the venue; of the first version at arXiv where there is none.
        authors: as papers cite them.
        title: of the paper.
        venue: conference or journal, without the year.
        code: address of the authors' code.
        licence: of that code.
        commit: of that code, with which the golden vectors of the parity tests were made.
        unproven: why no parity was tested, where there is no commit.
        variants: how the method can be configured where paper and code differ, or where there are several versions.
    """

    name: str
    arxiv: str
    year: int
    authors: str | None = None
    title: str | None = None
    venue: str | None = None
    code: str | None = None
    licence: str | None = None
    commit: str | None = None
    unproven: str | None = None
    variants: tuple[str, ...] = ()

    @property
    def cited(self) -> str:
        """Authors, venue and year, as in `Chen et al., ECCV 2024`."""
        where = f"{self.venue or 'arXiv'} {self.year}"
        return where if self.authors is None else f"{self.authors}, {where}"

    @property
    def paper(self) -> str:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"
