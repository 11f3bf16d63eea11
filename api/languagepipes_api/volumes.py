"""Which volumes a pipe's author may mount into a member's container: a closed list of core/v1's kinds.

Those that the restricted profile of the Pod Security Standards allows and a member can use: files from a ConfigMap or a
Secret, an empty folder, a claim, and what a CSI driver gives (secrets of a vault). Bounded as `template` is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from languagepipes_api.resource_model import KeyName, MayBeMissing, ObjectName, ResourceModel, ResourceQuantity, Rule

# What the operator calls its own, and where it mounts them.
_NAMES_TAKEN = ("cache", "hub-ca", "keys", "model", "plan", "tls", "tmp", "token")
_PATHS_TAKEN = ("/etc/languagepipes", "/var/lib/languagepipes", "/tmp")  # noqa: S108
# The image's own programs: a volume over them would hide them.
_PATHS_OF_THE_IMAGE = ("/opt/languagepipes",)

# No part is "." or "..", or begins with "..", which Kubernetes takes for no file.
_PART = "([^/:.][^/:]*|[.][^/:.][^/:]*)"
_RelativePath = Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{_PART}(/{_PART})*$")]
_AbsolutePath = Annotated[str, Field(min_length=2, max_length=253, pattern=f"^(/{_PART})+$")]
VolumeName = Annotated[str, Field(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
# Kubernetes leaves `readOnly: false` out, so it cannot be told from absent.
ReadOnly = Annotated[bool, Field(description="Whether the container may only read it.")]


class KeyFile(ResourceModel):
    """One key as a file."""

    key: KeyName = Field(description="The key.")
    path: _RelativePath = Field(description="The file's path below the mount.")


KeyFiles = Annotated[tuple[KeyFile, ...], Field(max_length=16, strict=False)]


class ConfigMapVolume(ResourceModel):
    """The keys of a ConfigMap in the pipe's namespace, as files."""

    name: ObjectName = Field(description="The ConfigMap's name.")
    items: KeyFiles = Field(
        default=(), description="Which keys, and as which files; all, by their own names, if absent."
    )
    optional: MayBeMissing = None


class SecretVolume(ResourceModel):
    """The keys of a Secret in the pipe's namespace, as files."""

    secret_name: ObjectName = Field(description="The Secret's name.")
    items: KeyFiles = Field(
        default=(), description="Which keys, and as which files; all, by their own names, if absent."
    )
    optional: MayBeMissing = None


class EmptyDirVolume(ResourceModel):
    """An empty folder that lives as long as the pod."""

    medium: Literal["Memory"] | None = Field(
        default=None, description="Memory: what is in it counts as the container's; the node's disk if absent."
    )
    size_limit: ResourceQuantity | None = Field(default=None, description="How much may be in it.")


class ClaimVolume(ResourceModel):
    """A PersistentVolumeClaim in the pipe's namespace."""

    claim_name: ObjectName = Field(description="The claim's name.")
    read_only: ReadOnly = False


class LocalReference(ResourceModel):
    """An object in the pipe's namespace."""

    name: ObjectName = Field(description="Its name.")


class CsiVolume(ResourceModel):
    """What a CSI driver mounts for this pod alone, as the Secrets Store driver does."""

    driver: Annotated[str, Field(min_length=1, max_length=63)] = Field(description="The driver's name.")
    read_only: ReadOnly = False
    volume_attributes: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict, description="What the driver is told."
    )
    node_publish_secret_ref: LocalReference | None = Field(
        default=None, description="A Secret that the driver may read for it."
    )


_KINDS = ("configMap", "secret", "emptyDir", "persistentVolumeClaim", "csi")


class VolumeSpec(ResourceModel):
    """One volume of the pod."""

    name: VolumeName = Field(description="Its name, for volumeMounts.")
    config_map: ConfigMapVolume | None = Field(default=None, description="Files from a ConfigMap.")
    secret: SecretVolume | None = Field(default=None, description="Files from a Secret.")
    empty_dir: EmptyDirVolume | None = Field(default=None, description="An empty folder.")
    persistent_volume_claim: ClaimVolume | None = Field(default=None, description="A claim.")
    csi: CsiVolume | None = Field(default=None, description="What a CSI driver gives.")

    rules = (
        Rule(
            f"a volume has exactly one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}",
            lambda volume: (
                [
                    volume.config_map,
                    volume.secret,
                    volume.empty_dir,
                    volume.persistent_volume_claim,
                    volume.csi,
                ].count(None)
                == len(_KINDS) - 1
            ),
            f"[{', '.join(f'has(self.{kind})' for kind in _KINDS)}].exists_one(x, x)",
        ),
        Rule(
            f"the operator has a volume of that name ({', '.join(_NAMES_TAKEN)}): choose another",
            lambda volume: volume.name not in _NAMES_TAKEN,
            f"!(self.name in [{', '.join(repr(name) for name in _NAMES_TAKEN)}])",
            "name",
        ),
    )


class VolumeMount(ResourceModel):
    """Where the container sees a volume."""

    name: VolumeName = Field(description="The volume's name.")
    mount_path: _AbsolutePath = Field(description="Where, as an absolute path.")
    sub_path: _RelativePath | None = Field(default=None, description="Which file or folder of it; all of it if absent.")
    read_only: ReadOnly = False

    rules = (
        Rule(
            f"the operator's files are there ({', '.join(_PATHS_TAKEN)}), or the image's "
            f"({', '.join(_PATHS_OF_THE_IMAGE)}): choose another folder",
            lambda mount: not _hides(mount.mount_path),
            f"![{', '.join(repr(path) for path in (*_PATHS_TAKEN, *_PATHS_OF_THE_IMAGE))}].exists(p, "
            "self.mountPath == p || self.mountPath.startsWith(p + '/') || p.startsWith(self.mountPath + '/'))",
            "mountPath",
        ),
    )


def _hides(path: str) -> bool:
    """Whether a volume there would hide a folder of ours, or be in one."""
    return any(
        path == taken or path.startswith(taken + "/") or taken.startswith(path + "/")
        for taken in (*_PATHS_TAKEN, *_PATHS_OF_THE_IMAGE)
    )


VOLUMES_RULES = (
    Rule(
        "volumes has a name twice: choose another for one",
        lambda template: len({volume.name for volume in template.volumes}) == len(template.volumes),
        "!has(self.volumes) || self.volumes.all(v, self.volumes.exists_one(w, w.name == v.name))",
        "volumes",
    ),
    Rule(
        "volumeMounts mounts two volumes at one mountPath: choose another for one",
        lambda template: len({mount.mount_path for mount in template.volume_mounts}) == len(template.volume_mounts),
        "!has(self.volumeMounts) || self.volumeMounts.all(m, self.volumeMounts.exists_one(n, n.mountPath == "
        "m.mountPath))",
        "volumeMounts",
    ),
    Rule(
        "volumeMounts names a volume that is not in volumes of this template",
        lambda template: (
            {mount.name for mount in template.volume_mounts} <= {volume.name for volume in template.volumes}
        ),
        "!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == "
        "m.name))",
        "volumeMounts",
    ),
)
