/* Search in pages that are opened from a folder: browsers run no worker there, so a hidden frame stands in for one. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map((each) => this.load(inside, each)))
      this.inside = inside
      this.load(inside, url).then(() => {
        this.ready = true
        for (const data of this.waiting.splice(0)) this.postMessage(data)
      })
    }

    load(inside, url) {
      return new Promise((done) => {
        const script = inside.document.createElement("script")
        script.src = url
        script.onload = done
        inside.document.head.append(script)
      })
    }

    postMessage(data) {
      if (!this.ready) return void this.waiting.push(data)
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
    }

    terminate() {}
  }
}
