"""The workshop's extensions of ComfyUI's frontend: no nodes, a page's scripts, and the two things that only Python can do.

GET  /comfyume/settings   whose ComfyUI this is, which extensions are on, which workflow it begins with
POST /comfyume/validate   what POST /prompt would say of a workflow, without running it
"""

import json
import logging
import os
import uuid

from aiohttp import web
from server import PromptServer

WEB_DIRECTORY = "./web"
NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

EXTENSIONS = ("queue-redirect", "default-workflow", "status-banner", "console-reports")

log = logging.getLogger("comfyume")


def enabled_extensions():
    """COMFYUME_EXTENSIONS, by commas; all of them when it isn't set, none when it is `none`."""
    said = os.environ.get("COMFYUME_EXTENSIONS", "").strip()
    if not said:
        return list(EXTENSIONS)
    names = [name.strip() for name in said.split(",")]
    for name in names:
        if name not in EXTENSIONS and name != "none":
            log.warning("comfyume: there is no extension %r; there are: %s", name, ", ".join(EXTENSIONS))
    return [name for name in EXTENSIONS if name in names]


def default_workflow():
    """COMFYUME_DEFAULT_WORKFLOW, else the first of the workshop's workflows; None when there are none."""
    said = os.environ.get("COMFYUME_DEFAULT_WORKFLOW", "").strip()
    if said:
        return said.removesuffix(".json")
    try:
        names = sorted(os.listdir(os.environ.get("WORKFLOWS_DIRECTORY", "/workflows")))
    except OSError:
        return None
    return next((name.removesuffix(".json") for name in names if name.endswith(".json")), None)


@PromptServer.instance.routes.get("/comfyume/settings")
async def settings(_request):
    return web.json_response(
        {
            "user_id": os.environ.get("USER_ID") or None,
            "extensions": enabled_extensions(),
            "default_workflow": default_workflow(),
        },
        headers={"Cache-Control": "no-store"},
    )


@PromptServer.instance.routes.post("/comfyume/validate")
async def validate(request):
    """The checks of ComfyUI's own POST /prompt, and its answers: 200, or 400 with `error` and `node_errors`."""
    try:
        data = await request.json()
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("prompt"), dict):
        error = {"type": "no_prompt", "message": "No prompt provided", "details": "", "extra_info": {}}
        return web.json_response({"error": error, "node_errors": {}}, status=400)
    try:
        import execution

        # Custom nodes may change a prompt on its way in.
        data = PromptServer.instance.trigger_on_prompt(data)
        answer = await execution.validate_prompt(
            str(uuid.uuid4()), data["prompt"], data.get("partial_execution_targets")
        )
        valid, error, outputs, node_errors = answer
    except Exception as trouble:  # another ComfyUI than the one that this was written for, or a custom node's bug
        log.warning("comfyume: workflows can't be checked here", exc_info=True)
        return web.json_response({"unavailable": f"{type(trouble).__name__}: {trouble}"}, status=501)
    if not valid:
        return web.json_response({"error": error, "node_errors": node_errors}, status=400)
    return web.json_response({"prompt": data["prompt"], "outputs": list(outputs), "node_errors": node_errors})
