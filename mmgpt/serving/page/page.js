"use strict";

const $ = (id) => document.getElementById(id);
let messages = []; // the conversation, as the API has it
let attached = []; // files to send with the next message
let running = null; // what stops the answer under way
let recorder = null; // of the sound under way
let asking = false; // for the microphone

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function ask(path, asked, signal) {
  const headed = { "Content-Type": "application/json", ...headers() };
  const sent = { method: "POST", headers: headed, body: JSON.stringify(asked), signal };
  const response = await fetch(path, sent).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server does not answer");
  });
  if (!response.ok) throw new Error(await failure(response));
  return response;
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
  const known = (file) => /^(image|audio|video)\//.test(file.type);
  attached.push(...[...files].filter(known));
  const refused = [...files].filter((file) => !known(file)).map((file) => file.name);
  $("note").textContent = refused.length ? `No picture, sound or video: ${refused.join(", ")}` : "";
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
  $("chat").parentElement.scrollTop = 0; // its end
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

async function answer(files, text) {
  const conversation = messages; // another one may begin meanwhile
  const message = addMessage("assistant");
  const said = message.querySelector(".said");
  message.setAttribute("aria-busy", "true");
  running = new AbortController();
  $("send").textContent = "Stop";
  let told = [];
  let answered = "";
  try {
    const content = await Promise.all(files.map(asPart));
    if (text) content.push({ type: "text", text });
    told = [...($("remember").checked ? conversation : []), { role: "user", content }];
    const asked = {
      messages: told,
      stream: true,
      temperature: Number($("temperature").value),
      ...($("tokens").value && { max_completion_tokens: Number($("tokens").value) }),
    };
    for await (const event of events(await ask("v1/chat/completions", asked, running.signal))) {
      if (event.error) throw new Error(event.error.message);
      answered += event.choices[0]?.delta.content ?? "";
      said.textContent = answered;
      if (event.choices[0]?.finish_reason === "content_filter") message.classList.add("filtered");
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      message.classList.add("wrong");
      said.textContent = error.message;
      answered = "";
    }
  }
  // What was not answered is no part of the conversation, so that it can go on.
  if (answered) conversation.push(told.at(-1), { role: "assistant", content: answered });
  if (answered && told.some((one) => one.role === "user" && one.content.some((part) => part.type !== "text")))
    offerExplanation(message, told, answered);
  message.removeAttribute("aria-busy");
  running = null;
  $("send").textContent = "Send";
}

// What the answer was made of: a button below it, then each of its words with where the model looked for it.
function offerExplanation(message, told, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "why";
  button.textContent = "Where did it look?";
  button.onclick = async () => {
    button.onclick = null; // a disabled button would lose the focus
    button.textContent = "Looking …";
    try {
      const response = await ask("v1/explanations", { messages: told, answer: text });
      const first = showExplanation(message, (await response.json()).words);
      if (document.activeElement === button) first?.focus();
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
  const told = document.createElement("p");
  // The same for all words: a picture keeps its place until the next one is there, and the words stay where they are.
  const pictures = (words[0]?.pictures ?? []).map(() => document.createElement("img"));
  seen.append(told, ...pictures);
  const share = (value) => `${Math.round(100 * value)} %`;
  const buttons = words.map((word) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "word";
    button.textContent = word.text.trimStart();
    button.onclick = button.onfocus = button.onmouseenter = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      told.textContent =
        `${share(word.probability)} likely, ${share(word.blind)} without what was sent\nBright is where it looked`;
      pictures.forEach((picture, i) => {
        picture.src = word.pictures[i];
        picture.alt = `where it looked for ${word.text.trim()}`;
      });
    };
    return button;
  });
  const spaced = (button, i) => [words[i].text.match(/^\s*/)[0], button];
  message.querySelector(".said").replaceChildren(...buttons.flatMap(spaced));
  message.append(seen);
  buttons[0]?.onclick();
  return buttons[0];
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (running) return running.abort();
  if (recorder) await recorded();
  const text = $("text").value.trim();
  const files = attached;
  if (!text && !files.length) return;
  addMessage("user", files, text);
  attached = [];
  showAttached();
  $("text").value = $("note").textContent = "";
  await answer(files, text);
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
  $("note").textContent = "";
  for (const message of document.querySelectorAll(".message")) message.remove();
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

// The end of a recording; its sound is attached then.
function recorded() {
  return new Promise((resolve) => {
    recorder.addEventListener("stop", resolve);
    recorder.stop();
  });
}

function silence(stream) {
  stream.getTracks().forEach((track) => track.stop());
}

$("record").onclick = async () => {
  if (recorder) return recorded();
  if (asking) return; // whoever sits there may take a while to allow it
  asking = true;
  let stream;
  try {
    if (!navigator.mediaDevices) throw new Error("browsers allow it over https or at localhost alone");
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      silence(stream);
      const type = recorder.mimeType.split(";")[0];
      recorder = null;
      $("record").setAttribute("aria-pressed", "false");
      attach([new File(pieces, "recording", { type: type.replace(/^video/, "audio") })]);
    };
    recorder.start();
    $("record").setAttribute("aria-pressed", "true");
  } catch (error) {
    if (stream) silence(stream);
    recorder = null;
    $("note").textContent = `No sound can be recorded: ${error.message}`;
  } finally {
    asking = false;
  }
};

showModel();
