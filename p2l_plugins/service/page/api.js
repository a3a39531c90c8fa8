// Requests to the service: the key, errors in one sentence, and one more try where it is busy.

const KEY = "p2l-key";

export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function once(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service can't be reached.");
  }
}

export async function call(path, body, signal) {
  for (let tries = 1; ; tries += 1) {
    const response = await once(path, body, signal);
    if (response.ok) return response.json();
    if ((response.status === 429 || response.status === 503) && tries < 5) {
      await pause(1000 * (Number(response.headers.get("Retry-After")) || 1));
      continue;
    }
    const problem = await response.json().catch(() => ({}));
    const detail = typeof problem.detail === "string" ? problem.detail : `The service answered with status ${response.status}.`;
    throw new Problem(response.status, detail[0].toUpperCase() + detail.slice(1));
  }
}
