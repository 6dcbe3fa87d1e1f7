"use strict";

const $ = (id) => document.getElementById(id);
let messages = []; // the conversation, as the API has it
let attached = []; // files to send with the next message
let running = null; // what stops the answer under way

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function showModel() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    $("model").textContent = response.ok ? (await response.json()).data[0].id : await failure(response);
  } catch {
    $("model").textContent = "the server does not answer";
  }
}

function dataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function asPart(file) {
  const url = await dataURL(file);
  if (file.type.startsWith("image/")) return { type: "image_url", image_url: { url } };
  if (file.type.startsWith("video/")) return { type: "video_url", video_url: { url } };
  const format = file.type.includes("mpeg") ? "mp3" : "wav";
  return { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } };
}

function view(file) {
  const kind = file.type.split("/")[0];
  const element = document.createElement(kind === "image" ? "img" : kind);
  element.src = URL.createObjectURL(file);
  if (kind === "image") element.alt = file.name;
  else element.controls = true;
  return element;
}

function attach(files) {
  for (const file of files) if (/^(image|audio|video)\//.test(file.type)) attached.push(file);
  showAttached();
  $("text").focus();
}

function showAttached() {
  $("media").replaceChildren(
    ...attached.map((file) => {
      const box = document.createElement("div");
      box.className = "attached";
      const name = document.createElement("span");
      name.textContent = file.name;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "×";
      remove.setAttribute("aria-label", `Remove ${file.name}`);
      remove.onclick = () => {
        attached = attached.filter((other) => other !== file);
        showAttached();
      };
      if (file.type.startsWith("image/")) box.append(view(file));
      box.append(name, remove);
      return box;
    }),
  );
}

function addMessage(role, files = [], text = "") {
  $("hint")?.remove();
  const message = document.createElement("div");
  message.className = `message ${role}`;
  const parts = document.createElement("div");
  parts.className = "parts";
  parts.append(...files.map(view));
  const said = document.createElement("div");
  said.className = "said";
  said.textContent = text;
  message.append(parts, said);
  $("chat").append(message);
  message.scrollIntoView({ block: "end" });
  return message;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer() {
  const conversation = messages; // another one may begin meanwhile
  const told = $("remember").checked ? conversation : conversation.slice(-1);
  const message = addMessage("assistant");
  const said = message.querySelector(".said");
  message.classList.add("waiting");
  running = new AbortController();
  $("send").textContent = "Stop";
  let text = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({
        model: $("model").textContent,
        messages: told,
        stream: true,
        temperature: Number($("temperature").value),
        ...($("tokens").value && { max_completion_tokens: Number($("tokens").value) }),
      }),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content ?? "";
      said.textContent = text;
      message.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      message.classList.add("wrong");
      said.textContent = error.message;
      text = "";
    }
  } finally {
    // What was not answered is no part of the conversation, so that it can go on.
    if (text) conversation.push({ role: "assistant", content: text });
    else conversation.pop();
    if (text && told.some((one) => one.role === "user" && one.content.some((part) => part.type !== "text")))
      offerExplanation(message, [...told].slice(0, told === conversation ? -1 : undefined), text);
    message.classList.remove("waiting");
    running = null;
    $("send").textContent = "Send";
  }
}

// What the answer was made of: a button below it, then each of its words with where the model looked for it.
function offerExplanation(message, told, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "why";
  button.textContent = "Where did it look?";
  button.onclick = async () => {
    button.disabled = true;
    button.textContent = "Looking …";
    try {
      const response = await fetch("v1/explanations", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...headers() },
        body: JSON.stringify({ model: $("model").textContent, messages: told, answer: text }),
      });
      if (!response.ok) throw new Error(await failure(response));
      showExplanation(message, (await response.json()).words);
      button.remove();
    } catch (error) {
      button.textContent = error.message;
    }
  };
  message.append(button);
}

function showExplanation(message, words) {
  const seen = document.createElement("div");
  seen.className = "seen";
  const said = message.querySelector(".said");
  const buttons = words.map((word) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.textContent = word.text.trim();
    button.onclick = button.onfocus = button.onmouseenter = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      const told = document.createElement("p");
      const share = (value) => `${Math.round(100 * value)} %`;
      told.textContent = `${share(word.probability)} likely, ${share(word.blind)} without what was sent`;
      const pictures = word.pictures.map((source) => {
        const picture = document.createElement("img");
        picture.src = source;
        picture.alt = `where it looked for ${word.text.trim()}`;
        return picture;
      });
      seen.replaceChildren(told, ...pictures);
    };
    return button;
  });
  said.replaceChildren(...buttons.flatMap((button) => [button, " "]));
  message.append(seen);
  buttons[0]?.onclick();
  message.scrollIntoView({ block: "end" });
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("text").value.trim();
  const files = attached;
  if (!text && !files.length) return;
  const content = await Promise.all(files.map(asPart));
  if (text) content.push({ type: "text", text });
  messages.push({ role: "user", content });
  addMessage("user", files, text);
  attached = [];
  showAttached();
  $("text").value = "";
  await answer();
};

$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  }
};

$("files").onchange = (event) => {
  attach(event.target.files);
  event.target.value = "";
};

$("clear").onclick = () => {
  running?.abort();
  messages = [];
  attached = [];
  showAttached();
  $("chat").replaceChildren();
  $("text").focus();
};

$("key").onchange = showModel;

document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  attach(event.dataTransfer.files);
};
document.onpaste = (event) => {
  if (event.clipboardData.files.length) attach(event.clipboardData.files);
};

let recorder = null;
$("record").onclick = async () => {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType.split(";")[0];
      recorder = null;
      $("record").setAttribute("aria-pressed", "false");
      attach([new File(pieces, "recording", { type: type.replace(/^video/, "audio") })]);
    };
    recorder.start();
    $("record").setAttribute("aria-pressed", "true");
  } catch (error) {
    recorder = null;
    addMessage("assistant wrong", [], `no sound can be recorded: ${error.message}`);
  }
};

showModel();
