// The JSON Schema of comfyume.yaml, for editors. `templates/comfyume.schema.json` is its copy.
import { z } from "zod"
import { configurationSchema } from "./environment.ts"

/** The schema as a JSON text, the same byte for byte each time. */
export function jsonSchemaText(): string {
	// draft-07: what editors' YAML servers know best.
	const schema = z.toJSONSchema(configurationSchema, { io: "input", target: "draft-07" })
	return `${JSON.stringify({ title: "comfyume.yaml", ...schema }, null, "\t")}\n`
}
