// A page that is opened from a disk may start no worker: its script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = this.onerror = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => {
        const copy = structuredClone(data); // as between threads: later, and nothing shared
        setTimeout(() => this.heard(copy));
      };
      const script = this.inside.document.createElement("script");
      script.src = new URL(url, location.href).href;
      this.ready = new Promise((resolve) => (script.onload = resolve));
      this.inside.document.body.append(script);
    }

    heard(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.ready.then(() =>
        setTimeout(() => this.inside.dispatchEvent(new MessageEvent("message", { data: copy }))),
      );
    }

    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
