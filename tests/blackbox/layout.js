// Puts longer text with long words in place of every text of the page, as another language might
// have it, and returns what does not fit. Arguments: the direction of the text and its size in
// percent. Without arguments, the page is as before.
const [direction, size] = arguments;
const root = document.documentElement;
root.original ??= root.dir;
root.dir = direction ?? root.original;
root.style.fontSize = size ? `${size}%` : "";
for (const details of document.querySelectorAll("details")) details.open = size !== undefined;

// One letter and a half for each, and the first three words are one.
const longer = (text) => {
  const words = text.trim().split(/\s+/).map((word) => word + word.slice(0, Math.ceil(word.length * 0.6)));
  return words.length < 3 ? words.join(" ") : [words.slice(0, 3).join(""), ...words.slice(3)].join(" ");
};
const arabic = (text) => text.replace(/\p{Letter}/gu, (letter) => "شيمسب"[letter.codePointAt(0) % 5]);

const texts = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode;
  node.original ??= node.data;
  if (!node.original.trim() || node.parentElement.closest("svg, style")) continue;
  texts.push(node);
  const [start] = node.original.match(/^\s*/);
  const [end] = node.original.match(/\s*$/);
  const text = direction === "rtl" ? arabic(longer(node.original)) : longer(node.original);
  node.data = size ? start + text + end : node.original;
}
if (!size) return [];

const wrong = [];
const called = (node) => {
  const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
  const [tag] = element.cloneNode().outerHTML.match(/^<[^>]*>/);
  return `${tag} ${(node.original ?? "").trim().slice(0, 40)}`;
};
const boxes = [];
for (const text of texts) {
  if (text.parentElement.closest(".unseen, select")) continue;
  const range = document.createRange();
  range.selectNodeContents(text);
  const lines = [...range.getClientRects()].filter((line) => line.width > 0 && line.height > 0);
  for (const line of lines) boxes.push([text, line]);
  if (lines.length === 0) wrong.push(`not shown: ${called(text)}`);
  // Numbers among letters from right to left are boxes of their own.
  const rows = new Set(lines.map((line) => Math.round(line.top / line.height))).size;
  const letters = text.data.trim().length;
  if (letters > 6 && rows > letters / 3) wrong.push(`a column of letters: ${called(text)}`);
}
const controls = "input:not([type=hidden], [hidden]), select, button, img, svg, .tag";
for (const control of document.querySelectorAll(controls)) {
  const box = control.getBoundingClientRect();
  boxes.push([control, box]);
  if (box.width < 24 || box.height < 18) wrong.push(`too small: ${called(control)}`);
}

// Letters reach a little above and below their line.
const reach = (box) => box.height / 4;
for (const [node, box] of boxes) {
  if (box.left < -0.5 || box.right > innerWidth + 0.5) wrong.push(`outside the window: ${called(node)}`);
  for (let around = node.parentElement; around !== document.body; around = around.parentElement) {
    if (["inline", "contents"].includes(getComputedStyle(around).display)) continue;
    const outer = around.getBoundingClientRect();
    const isInside =
      box.left >= outer.left - 0.5 && box.right <= outer.right + 0.5 &&
      box.top >= outer.top - reach(box) && box.bottom <= outer.bottom + reach(box);
    if (!isInside) wrong.push(`${called(node)} does not fit into ${called(around)}`);
  }
}
for (const [at, [one, first]] of boxes.entries()) {
  for (const [other, second] of boxes.slice(at + 1)) {
    if (one === other || one.contains(other) || other.contains(one)) continue;
    const across = Math.min(first.right, second.right) - Math.max(first.left, second.left);
    const down = Math.min(first.bottom, second.bottom) - Math.max(first.top, second.top);
    if (across > 1 && down > Math.min(reach(first), reach(second))) {
      wrong.push(`${called(one)} overlaps ${called(other)}`);
    }
  }
}
// Letters and digits that are typed elsewhere keep their order.
for (const copied of document.querySelectorAll(".secret, .codes, code")) {
  if (getComputedStyle(copied).direction !== "ltr") wrong.push(`reversed: ${called(copied)}`);
}
if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide`);
return [...new Set(wrong)];
