// Creates elements from names, attributes and children. Data becomes text nodes and is never parsed.

const SVG = "http://www.w3.org/2000/svg";

/** An element: attributes by name, listeners as onNAME; null, undefined and false are left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Replace the children of a node; null, undefined and false are left out here, too. */
export function fill(node, ...children) {
  node.replaceChildren(...real(children));
}

export function byId(id) {
  return document.getElementById(id);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...real(children));
  return node;
}

function real(children) {
  return children.flat().filter((one) => one !== null && one !== undefined && one !== false);
}
