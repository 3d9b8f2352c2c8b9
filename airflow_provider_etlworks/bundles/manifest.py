"""What is written next to a bundle: where it comes from, and what is in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.errors import EtlworksConfigError

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.settings import ClientSettings


class Format(str, Enum):
    """Which API a bundle belongs to."""

    IO = "io"
    LEGACY = "older"


@dataclass(frozen=True)
class Manifest:
    """
    What is written next to a bundle: where it comes from, and what is in it.

    :ivar format: which API it belongs to.
    :ivar host: the instance it was exported from, such as ``app.etlworks.com``.
    :ivar tenant: the tenant that the connection switched to; ``None`` if it named none.
    :ivar exported_at: when, as ISO 8601 in UTC.
    :ivar sha256: the bundle's SHA-256, in hexadecimal.
    :ivar size: the bundle's length in bytes; ``bytes`` in the document.
    :ivar flow_ids: the exported flows' ids in that instance.
    :ivar flow_names: their names, in the same order.
    :ivar include_connections: whether the connections that the flows use were asked for too.
    """

    format: str
    host: str
    tenant: str | None
    exported_at: str
    sha256: str
    size: int
    flow_ids: list[int]
    flow_names: list[str]
    include_connections: bool

    def to_json(self) -> bytes:
        """Return it as a JSON document for people and programs."""
        values = asdict(self)
        instance = {"host": values.pop("host"), "tenant": values.pop("tenant")}
        values |= {"bytes": values.pop("size"), "instance": instance}
        return json.dumps(values, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """
        Read what :meth:`to_json` wrote. Fields that a later release added are ignored.

        :raises EtlworksConfigError: it is not such a document.
        """
        try:
            values = json.loads(text)
            values |= {"size": values["bytes"], **values.pop("instance")}
            manifest = cls(**{each.name: values[each.name] for each in fields(cls)})
            Format(manifest.format)
            is_sound = (
                isinstance(manifest.host, str)
                and all(isinstance(each, str) for each in manifest.flow_names)
                and all(isinstance(each, int) for each in manifest.flow_ids)
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            is_sound = False
        if not is_sound:
            raise EtlworksConfigError("It is not a description of a bundle as the export writes it.")
        return manifest

    def is_from(self, settings: ClientSettings) -> bool:
        """
        Whether the bundle comes from the instance that a connection leads to.

        Two tenants of one instance differ only if both are named.
        """
        if self.host != instance_of(settings):
            return False
        return self.tenant is None or settings.tenant_id is None or self.tenant == settings.tenant_id


def instance_of(settings: ClientSettings) -> str:
    """Return the name of an instance: its address without the scheme."""
    return settings.root_url.partition("://")[2].lower()
