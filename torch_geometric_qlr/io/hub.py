"""Models in folders as the Hugging Face Hub has them, and on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from torch_geometric_qlr.errors import CheckpointError, InputError
from torch_geometric_qlr.io.format import check_file
from torch_geometric_qlr.io.reading import load
from torch_geometric_qlr.io.writing import save

__all__ = ["FILE_NAME", "from_pretrained", "save_pretrained"]

#: What the Hub calls a model's weights.
FILE_NAME = "model.safetensors"


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **options: Any,
) -> str:
    r"""Writes a quantized or converted model to a folder, as ``model.safetensors``, which
    :func:`~torch_geometric_qlr.save` makes; and uploads the folder, if asked to.

    PyG's own ``PyGModelHubMixin.save_pretrained`` pickles the ``state_dict`` alone, which does not
    say how a model is quantized.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize` or
            :func:`~torch_geometric_qlr.convert`.
        folder (str or os.PathLike): Where to; made if it is not there.
        push_to_hub (bool): Whether to upload the folder to the Hub, for which ``huggingface_hub``
            has to be installed. (default: :obj:`False`)
        repo_id (str, optional): The repository there; by default one of the folder's name in your
            account. (default: :obj:`None`)
        **options (optional): Further arguments of ``huggingface_hub.upload_folder``, such as
            :obj:`token`, :obj:`revision` and :obj:`commit_message`.

    Returns:
        str: The path of the file.

    Raises:
        InputError: If :obj:`folder` is no path, or there are options and nothing is uploaded.
        ImportError: If there is no ``huggingface_hub`` to upload with.

    Whatever :func:`~torch_geometric_qlr.save` raises is raised before anything is uploaded.

    Example:
        >>> import tempfile
        >>> from torch_geometric.nn import GCN
        >>> import torch_geometric_qlr as qlr
        >>> model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = qlr.save_pretrained(model, folder)
        ...     type(qlr.from_pretrained(folder)).__name__
        'GCN'
    """
    folder = _path(folder)
    if not push_to_hub and (repo_id is not None or options):
        given = ", ".join([*options, *([] if repo_id is None else ["repo_id"])])
        raise InputError(
            f"save_pretrained got {given}, but uploads nothing. Pass push_to_hub=True as well."
        )
    hub = _hub() if push_to_hub else None
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, FILE_NAME)
    save(model, path)
    if hub is not None:
        name = repo_id or os.path.basename(os.path.abspath(folder))
        url = hub.create_repo(name, token=options.get("token"), exist_ok=True)
        hub.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=FILE_NAME, **options
        )
    return path


def from_pretrained(
    source: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    backend: str = "auto",
    trust: Sequence[str] = (),
    **options: Any,
) -> nn.Module:
    r"""Reads what :func:`save_pretrained` wrote, from a folder or from the Hub.

    Args:
        source (str or os.PathLike): The folder; or the name of a repository on the Hub, which needs
            ``huggingface_hub``. No pickle is read from either.
        model (torch.nn.Module, optional): As for :func:`~torch_geometric_qlr.load`.
        backend (str): Likewise.
        trust (tuple): Likewise.
        **options (optional): Further arguments of ``huggingface_hub.hf_hub_download``, such as
            :obj:`revision`, :obj:`token`, :obj:`cache_dir` and :obj:`local_files_only`.

    Returns:
        torch.nn.Module: The quantized or converted model.

    Raises:
        CheckpointError: If the folder has no ``model.safetensors``, or one that
            :func:`~torch_geometric_qlr.load` refuses.
        InputError: If :obj:`source` is no path.
        ImportError: If :obj:`source` is no folder, and there is no ``huggingface_hub``.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.from_pretrained(".")
        Traceback (most recent call last):
            ...
        torch_geometric_qlr.errors.CheckpointError: .: there is no model.safetensors in this folder.
        qlr.save_pretrained(model, folder) writes one.
    """
    source = _path(source)
    if os.path.isdir(source):
        path = os.path.join(source, FILE_NAME)
        if not os.path.isfile(path):
            raise CheckpointError(
                f"{source}: there is no {FILE_NAME} in this folder. "
                f"qlr.save_pretrained(model, folder) writes one."
            )
    else:
        path = _hub().hf_hub_download(repo_id=source, filename=FILE_NAME, **options)
    return load(path, model, backend=backend, trust=trust)


def _path(folder: Any) -> str:
    if not isinstance(folder, (str, os.PathLike)):
        check_file(None, "write")
    return os.fspath(folder)


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "huggingface_hub is not installed, which talks to the Hub: pip install huggingface_hub."
        ) from error
    return huggingface_hub
