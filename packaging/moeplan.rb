class Moeplan < Formula
  desc "@description@"
  homepage "@repository@"
  version "@version@"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
      url "@url aarch64-apple-darwin@"
      sha256 "@sha256 aarch64-apple-darwin@"
    end
    on_intel do
      url "@url x86_64-apple-darwin@"
      sha256 "@sha256 x86_64-apple-darwin@"
    end
  end

  on_linux do
    on_arm do
      url "@url aarch64-unknown-linux-musl@"
      sha256 "@sha256 aarch64-unknown-linux-musl@"
    end
    on_intel do
      url "@url x86_64-unknown-linux-musl@"
      sha256 "@sha256 x86_64-unknown-linux-musl@"
    end
  end

  def install
    bin.install "moeplan"
    bash_completion.install "completions/moeplan.bash" => "moeplan"
    zsh_completion.install "completions/_moeplan"
    fish_completion.install "completions/moeplan.fish"
    man1.install Dir["man/*.1"]
  end

  test do
    system bin/"moeplan", "synth", "qwen3-30b-a3b", "-o", "m.gguf"
    assert_match "llama-server -m m.gguf", shell_output("#{bin}/moeplan plan --vram 24G --ram 64G m.gguf")
  end
end
