#!/bin/sh
# Brings the workshop's workflows to where ComfyUI serves them, and the image's custom nodes to where it loads them.
# What a user has changed or installed is never touched: only what lies there as we last put it is replaced.
set -eu

comfyui=${COMFYUI_DIRECTORY:-/comfyui}
workflows=${WORKFLOWS_DIRECTORY:-/workflows}
nodes=${SEED_NODES_DIRECTORY:-/opt/comfyume/custom_nodes}

target=$comfyui/user/default/workflows
noted=$comfyui/user/.comfyume-workflows
mkdir -p "$target" "$noted"

digest() { sha256sum <"$1" | cut -d ' ' -f 1; }

for source in "$workflows"/*.json; do
	[ -f "$source" ] || continue
	name=$(basename "$source")
	new=$(digest "$source")
	old=$(cat "$noted/$name" 2>/dev/null || true)
	if [ ! -e "$target/$name" ]; then
		# Once put there and gone: the user has removed it.
		[ "$old" = "$new" ] && continue
	elif [ "$(digest "$target/$name")" != "$old" ]; then
		continue
	fi
	cp "$source" "$target/.$name.partial"
	mv "$target/.$name.partial" "$target/$name"
	echo "$new" >"$noted/$name"
done

for source in "$nodes"/*; do
	[ -e "$source" ] || continue
	name=$(basename "$source")
	place=$comfyui/custom_nodes/$name
	marker=$comfyui/custom_nodes/.comfyume-$name
	# There, and not from us: the user's own.
	if [ -e "$place" ] && [ ! -e "$marker" ]; then
		continue
	fi
	: >"$marker"
	rm -rf "$place.partial"
	cp -R "$source" "$place.partial"
	rm -rf "$place"
	mv "$place.partial" "$place"
done

exec "$@"
