for (const box of document.querySelectorAll(".what-if")) {
  const controls = [...box.querySelectorAll(".control")];
  const inputs = controls.map((control) => control.querySelector("input"));
  const values = controls.map((control) => [...control.querySelectorAll("template")].map((value) => value.content.textContent));
  const command = box.querySelector("pre");
  const rows = [...box.querySelectorAll("tbody tr")];
  const commands = [...box.querySelectorAll("template.command")];
  const show = () => {
    const at = inputs.reduce((sum, input, axis) => sum * values[axis].length + Number(input.value), 0);
    rows.forEach((row, index) => row.classList.toggle("chosen", index === at));
    const told = rows[at] ? [...rows[at].cells].map((cell) => cell.textContent).join(", ") : "";
    inputs.forEach((input, axis) => {
      controls[axis].querySelector("output").textContent = values[axis][input.value];
      input.setAttribute("aria-valuetext", `${values[axis][input.value]}: ${told}`);
    });
    if (command && commands[at]) command.textContent = commands[at].content.textContent;
  };
  controls.forEach((control) => (control.hidden = false));
  inputs.forEach((input) => input.addEventListener("input", show));
  show();
}
