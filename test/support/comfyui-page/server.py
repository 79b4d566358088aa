"""A stand-in for a frontend container's ComfyUI server: the routes that the real frontend (comfyui-frontend-package) asks,
two nodes, no execution. The extension's own Python is the real one, loaded as ComfyUI loads custom nodes; `server` and
`execution` are small modules of the same shape as ComfyUI's.

Arguments: port, directory of the extension, directory of the user (user/, outputs/). PYTHONPATH has aiohttp and the
frontend.
"""

import asyncio
import importlib.util
import json
import os
import sys
import types
import uuid
from pathlib import Path

import comfyui_frontend_package
from aiohttp import WSMsgType, web

port, extension, home = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
page = Path(comfyui_frontend_package.__file__).parent / "static"
userdata = home / "user"
settings_file = home / "settings.json"
asked_natively = []

NODES = {
    "MadeUpPicture": {
        "input": {
            "required": {
                "seed": ["INT", {"default": 0, "min": 0, "max": 2**32, "control_after_generate": True}],
                "width": ["INT", {"default": 64, "min": -4096, "max": 4096}],
            }
        },
        "output": ["IMAGE"],
        "output_node": False,
    },
    "SaveImage": {
        "input": {
            "required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        },
        "output": [],
        "output_node": True,
    },
}


def object_info():
    return {
        name: {
            **node,
            "name": name,
            "display_name": name,
            "description": "",
            "category": "tests",
            "python_module": "nodes",
            "input_order": {kind: list(inputs) for kind, inputs in node["input"].items()},
            "output_is_list": [False] * len(node["output"]),
            "output_name": node["output"],
        }
        for name, node in NODES.items()
    }


async def validate_prompt(prompt_id, prompt, partial_execution_list):
    """The answers of ComfyUI's own, for what these tests get wrong."""
    for id_, node in prompt.items():
        if node.get("class_type") not in NODES:
            message = f"Cannot execute because node {node.get('class_type')} does not exist."
            error = {"type": "invalid_prompt", "message": message, "details": f"Node ID '#{id_}'", "extra_info": {}}
            return (False, error, [], {})
    outputs = [id_ for id_, node in prompt.items() if NODES[node["class_type"]]["output_node"]]
    if partial_execution_list is not None:
        outputs = [id_ for id_ in outputs if id_ in partial_execution_list]
    if not outputs:
        error = {"type": "prompt_no_outputs", "message": "Prompt has no outputs", "details": "", "extra_info": {}}
        return (False, error, [], {})
    good, node_errors = [], {}
    for output in outputs:
        link = prompt[output]["inputs"].get("images")
        source = prompt[link[0]] if link else None
        if source is not None and source["inputs"]["width"] > 0:
            good.append(output)
            continue
        reason = {
            "type": "value_smaller_than_min",
            "message": "Value smaller than min",
            "details": "width",
            "extra_info": {"input_name": "width"},
        }
        bad = link[0] if link else output
        node_errors[bad] = {
            "errors": [reason],
            "dependent_outputs": [output],
            "class_type": prompt[bad]["class_type"],
        }
    if good:
        return (True, None, good, node_errors)
    error = {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "Value smaller than min: width",
        "extra_info": {},
    }
    return (False, error, good, node_errors)


class PromptServer:
    routes = web.RouteTableDef()

    def trigger_on_prompt(self, data):
        return data


PromptServer.instance = PromptServer()
sys.modules["server"] = types.SimpleNamespace(PromptServer=PromptServer)
if os.environ.get("WITHOUT_VALIDATION") != "1":
    sys.modules["execution"] = types.SimpleNamespace(validate_prompt=validate_prompt)

found = importlib.util.spec_from_file_location("comfyume", extension / "__init__.py")
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
scripts = extension / module.WEB_DIRECTORY
routes = PromptServer.instance.routes


@routes.get("/extensions")
async def extensions(_request):
    names = sorted(str(path.relative_to(scripts)) for path in scripts.rglob("*.js"))
    return web.json_response([f"/extensions/comfyume/{name}" for name in names])


@routes.get("/object_info")
async def get_object_info(_request):
    return web.json_response(object_info())


def read_settings():
    return json.loads(settings_file.read_text()) if settings_file.exists() else {}


@routes.get("/settings")
async def get_settings(_request):
    return web.json_response(read_settings())


@routes.get("/settings/{id}")
async def get_setting(request):
    return web.json_response(read_settings().get(request.match_info["id"]))


@routes.post("/settings")
async def post_settings(request):
    settings_file.write_text(json.dumps({**read_settings(), **await request.json()}))
    return web.Response()


@routes.post("/settings/{id}")
async def post_setting(request):
    settings_file.write_text(json.dumps({**read_settings(), request.match_info["id"]: await request.json()}))
    return web.Response()


@routes.get("/users")
async def users(_request):
    return web.json_response({"storage": "server", "migrated": True})


@routes.get("/userdata")
async def list_userdata(request):
    top = userdata / request.query.get("dir", "")
    files = sorted(path for path in top.rglob("*") if path.is_file()) if top.exists() else []
    return web.json_response(
        [
            {"path": str(path.relative_to(top)), "size": path.stat().st_size, "modified": path.stat().st_mtime * 1000}
            for path in files
        ]
    )


@routes.get("/userdata/{file}")
async def get_userdata(request):
    path = userdata / request.match_info["file"]
    return web.FileResponse(path) if path.is_file() else web.Response(status=404)


@routes.post("/userdata/{file}")
async def post_userdata(request):
    path = userdata / request.match_info["file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(await request.read())
    return web.json_response(request.match_info["file"])


@routes.get("/system_stats")
async def system_stats(_request):
    system = {"os": "posix", "comfyui_version": "0.11.0", "python_version": "3", "argv": [], "ram_total": 1, "ram_free": 1}
    return web.json_response({"system": {**system, "pytorch_version": "", "embedded_python": False}, "devices": []})


@routes.get("/queue")
async def queue(_request):
    return web.json_response({"queue_running": [], "queue_pending": []})


@routes.get("/view")
async def view(request):
    path = home / "outputs" / request.query.get("subfolder", "") / request.query["filename"]
    return web.FileResponse(path) if path.is_file() else web.Response(status=404)


@routes.post("/prompt")
async def prompt(request):
    """Nobody should come here while the redirect is on: what does is kept for the test to see."""
    asked_natively.append(await request.json())
    return web.json_response({"prompt_id": str(uuid.uuid4()), "number": 1, "node_errors": {}})


@routes.get("/asked-natively")
async def natively(_request):
    return web.json_response(len(asked_natively))


for empty, answer in {
    "history": {},
    "i18n": {},
    "features": {},
    "global_subgraphs": {},
    "workflow_templates": {},
    "embeddings": [],
    "experiment/models": [],
    "assets": {"assets": []},
    "prompt": {"exec_info": {"queue_remaining": 0}},
}.items():
    routes.get(f"/{empty}")(lambda _request, answer=answer: asyncio.sleep(0, web.json_response(answer)))


async def socket(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    sid = request.query.get("clientId") or uuid.uuid4().hex
    await ws.send_json({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": sid}})
    async for message in ws:
        if message.type == WSMsgType.ERROR:
            break
    return ws


async def index(_request):
    return web.FileResponse(page / "index.html")


app = web.Application(client_max_size=2**26)
api = web.RouteTableDef()
for route in routes:
    # ComfyUI answers each with and without /api.
    api.route(route.method, "/api" + route.path, **route.kwargs)(route.handler)
app.add_routes(api)
app.add_routes(routes)
app.router.add_get("/ws", socket)
app.router.add_get("/", index)
app.router.add_get("/templates/index.json", lambda _request: asyncio.sleep(0, web.json_response([])))
app.router.add_static("/extensions/comfyume", scripts)
app.router.add_static("/", page)
web.run_app(app, host="127.0.0.1", port=port, print=None, handle_signals=True)
