# Where the real images have ComfyUI's main.py. The stand-in behind it is a Node program.
import os
import sys

os.execvp("node", ["node", "/opt/stand-in/stand-ins/comfyui/main.ts", *sys.argv[1:]])
