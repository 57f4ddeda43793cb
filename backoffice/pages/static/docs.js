// Renders the OpenAPI 3.1 document of a service.

import { ask, find, make, say } from "./page.js";

const EDGE = document.querySelector('meta[name="flashsale-edge"]').content;
const METHODS = ["get", "post", "put", "patch", "delete"];

async function load() {
  const base = find("service").value === "edge" ? EDGE : "";
  find("operations").replaceChildren();
  find("schemas").replaceChildren();
  try {
    const spec = await ask("GET", `${base}/openapi.json`);
    find("about").className = "quiet small";
    find("about").textContent = `${spec.info.title} ${spec.info.version}, ${base || location.origin}`;
    show(spec);
  } catch (problem) {
    say(find("about"), `Could not load the API description: ${problem.text}`);
  }
}

function show(spec) {
  const tags = new Map();
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const operation = item[method];
      const tag = operation.tags?.[0] ?? "operations";
      if (tag === "pages") continue;
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(operationOf(path, method, operation, item.parameters ?? []));
    }
  }
  find("operations").append(...[...tags].map(([tag, operations]) =>
    make("section", { class: "card", "data-tag": tag, "aria-label": tag }, make("h2", {}, tag), ...operations)));
  find("schemas").append(...Object.entries(spec.components?.schemas ?? {}).sort().map(([name, schema]) =>
    make("details", { id: `schema-${name}` }, make("summary", {}, make("code", {}, name)), schemaOf(schema))));
  filter();
}

function operationOf(path, method, operation, shared) {
  const parameters = [...shared, ...(operation.parameters ?? [])];
  const body = operation.requestBody?.content ?? {};
  const parts = [
    operation.description ? make("p", {}, operation.description) : null,
    parameters.length ? table("Parameters", ["Name", "In", "Type", "Description"], parameters.map((parameter) => [
      make("code", {}, parameter.name + (parameter.required ? " *" : "")), parameter.in, typeOf(parameter.schema ?? {}), parameter.description ?? parameter.schema?.description ?? ""])) : null,
    ...Object.entries(body).map(([type, content]) => make("p", {}, "Body: ", make("code", {}, type), " ", typeOf(content.schema ?? {}))),
    table("Responses", ["Status", "Description", "Body"], Object.entries(operation.responses ?? {}).map(([status, answer]) => [
      make("code", {}, status), answer.description ?? "", bodies(answer.content ?? {})])),
  ];
  return make("details", { "data-words": `${method} ${path} ${operation.summary ?? ""}`.toLowerCase() },
    make("summary", {}, make("strong", {}, method.toUpperCase()), " ", make("code", {}, path), " ", make("span", { class: "quiet" }, operation.summary ?? "")),
    ...parts.filter(Boolean));
}

function bodies(content) {
  const box = make("span");
  for (const [type, { schema }] of Object.entries(content)) box.append(schema ? typeOf(schema) : type, " ");
  return box;
}

function table(caption, heads, rows) {
  return make("div", { class: "scroll" }, make("table", {},
    make("caption", { class: "small" }, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)))))));
}

function schemaOf(schema) {
  const members = Object.entries(schema.properties ?? {});
  const about = schema.description ? make("p", {}, schema.description) : null;
  if (!members.length) return make("div", {}, about, make("p", {}, typeOf(schema)));
  const required = new Set(schema.required ?? []);
  return make("div", {}, about, table("Members", ["Name", "Type", "Description"], members.map(([name, member]) => [
    make("code", {}, name + (required.has(name) ? " *" : "")), typeOf(member), member.description ?? ""])));
}

/** A type as text, with links to named schemas. */
function typeOf(schema) {
  const box = make("span");
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    box.append(make("a", { href: `#schema-${name}`, click: () => (find(`schema-${name}`).open = true) }, name));
    return box;
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) {
    choices.forEach((choice, place) => box.append(place ? " or " : "", typeOf(choice)));
    return box;
  }
  if (schema.type === "array") {
    box.append("list of ", typeOf(schema.items ?? {}));
  } else {
    box.append([schema.type ?? "anything", schema.format].flat().filter(Boolean).join(", "));
  }
  if (schema.enum) box.append(`: ${schema.enum.join(", ")}`);
  if (schema.const !== undefined) box.append(`: ${schema.const}`);
  const bounds = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "default"]
    .filter((name) => schema[name] !== undefined).map((name) => `${name} ${schema[name]}`);
  if (bounds.length) box.append(make("span", { class: "quiet small" }, ` (${bounds.join(", ")})`));
  return box;
}

function filter() {
  const wanted = find("filter").value.trim().toLowerCase();
  for (const section of find("operations").children) {
    let any = false;
    for (const operation of section.querySelectorAll("details")) {
      operation.hidden = !operation.dataset.words.includes(wanted);
      any ||= !operation.hidden;
    }
    section.hidden = !any;
  }
}

find("service").addEventListener("change", load);
find("filter").addEventListener("input", filter);
load();
