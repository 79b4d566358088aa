// Which files are models, by their names alone.

const modelName = /\.(safetensors|sft|ckpt|pt|pt2|pth|bin|gguf|onnx|pkl)$/i

/** Whether a file is a model by its name. */
export const isModelName = (path: string): boolean => modelName.test(path)

/** Whether it is what stood in a file's place before that was put right: kept until the operator removes it. */
export const isKeptAside = (path: string): boolean => /\.bad-\d{8}T\d{6}Z(-\d+)?$/.test(path)
