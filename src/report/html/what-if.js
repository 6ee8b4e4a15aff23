for (const box of document.querySelectorAll(".what-if")) {
  const control = box.querySelector(".control");
  const input = control.querySelector("input");
  const shown = control.querySelector("output");
  const command = box.querySelector("pre");
  const rows = [...box.querySelectorAll("tbody tr")];
  const commands = [...box.querySelectorAll("template")];
  const show = () => {
    const at = Number(input.value);
    rows.forEach((row, index) => row.classList.toggle("chosen", index === at));
    shown.textContent = rows[at].cells[0].textContent;
    input.setAttribute("aria-valuetext", [...rows[at].cells].map((cell) => cell.textContent).join(", "));
    if (command && commands[at]) command.textContent = commands[at].content.textContent;
  };
  control.hidden = false;
  input.addEventListener("input", show);
  show();
}
