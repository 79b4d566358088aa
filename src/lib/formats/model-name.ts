// Which files are models, by their names alone.

const modelName = /\.(safetensors|sft|ckpt|pt|pt2|pth|bin|gguf|onnx|pkl)$/i

/** Whether a file is a model by its name. */
export const isModelName = (path: string): boolean => modelName.test(path)
