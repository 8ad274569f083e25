// What pages do beyond HTML and htmx: "/" goes to the search field, and a page that cannot be kept up to date says so.
document.addEventListener("htmx:afterRequest", (event) => {
  const stale = document.getElementById("stale");
  if (stale) {
    stale.hidden = event.detail.successful;
  }
});
document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !field && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const find = document.querySelector("[data-find]") || document.getElementById("find");
    if (find) {
      event.preventDefault();
      find.focus();
      find.select();
    }
  }
});
