// Loads the page again when a part of it has not arrived.
//
// Browsers break off what they load when a network of their machine comes or goes, as each build
// that runs on it makes one. This stands in every page: what has to be loaded itself could not tell.

{
  const TRIES = 5; // behind them the server has not got it
  const KEY = "arrival";
  let isWhole = true;
  addEventListener("error", ({ target }) => {
    if (!(target instanceof HTMLScriptElement || target instanceof HTMLLinkElement)) return;
    const tried = Number(sessionStorage.getItem(KEY));
    if (!isWhole || tried >= TRIES) return; // who loads it again by hand has as many tries
    isWhole = false;
    sessionStorage.setItem(KEY, tried + 1);
    setTimeout(() => location.reload(), 100 * 2 ** tried);
  }, true);
  addEventListener("load", () => isWhole && sessionStorage.removeItem(KEY));
}
