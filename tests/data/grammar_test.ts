import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import { generateCorpus } from "../../data/mod.ts";
import { drawPairs } from "../../data/grammar.ts";
import { chineseCount, chineseNumber, englishNumber } from "../../data/grammar/numerals.ts";

const corpus = generateCorpus();
const all = [...corpus.train, ...corpus.dev, ...corpus.test];

/** Sentences of the default corpus whose Chinese was read and found right. */
const READ: readonly (readonly [string, string])[] = [
  ["We bought a coat.", "我们买了一件大衣。"],
  ["Anna has ridden our horses before.", "安娜以前骑过我们的马。"],
  ["Have you ever received the letters?", "你收到过那些信吗？"],
  ["She has never sung these two songs.", "她从来没有唱过这两首歌。"],
  ["Who studied mathematics in the classroom last night?", "谁昨天晚上在教室学数学了？"],
  ["What did they send yesterday morning?", "他们昨天早上寄了什么？"],
  ["Why did I not play football in the library last year?", "我为什么去年没有在图书馆踢足球？"],
  ["How many films did John watch last month?", "约翰上个月看了几部电影？"],
  ["Whose egg is that?", "那是谁的鸡蛋？"],
  ["This watch is not as cheap as these watches.", "这块手表没有这些手表便宜。"],
  ["His house is much more expensive than these two houses.", "他的房子比这两座房子贵得多。"],
  ["Last month, you went to New York by train with Wang Fang.", "上个月你和王芳一起坐火车去了纽约。"],
  ["There are two newspapers in the box.", "盒子里有两份报纸。"],
  ["The room that the writer cleaned is very dirty.", "那位作家打扫的那个房间非常脏。"],
  ["The mirror was broken by the rabbit at four o'clock yesterday.", "那面镜子昨天四点被那只兔子打破了。"],
  ["We put the bag on the bed last Thursday.", "我们上个星期四把那个包放在了床上。"],
  ["Please close this window.", "请把这扇窗户关上。"],
  ["If it is hot tomorrow, he will study mathematics.", "如果明天很热，他就会学数学。"],
  [
    "Although Mr. Zhang is very hungry, her younger sister is dancing.",
    "虽然张先生非常饿，但是她妹妹正在跳舞。",
  ],
  ["The hat costs two thousand yuan.", "那顶帽子要两千元。"],
  ["The teacher has lived in Paris for two weeks.", "那位老师在巴黎住了两个星期。"],
  ["You cannot swim.", "你不会游泳。"],
  ["Now, her grandmother is not speaking French.", "现在她奶奶没有在说法语。"],
  ["Mike is sitting under the bed.", "迈克坐在床下面。"],
  ["Let us work in the classroom!", "我们在教室工作吧！"],
  ["There are two hundred and sixty singers in the museum.", "博物馆里有两百六十位歌手。"],
];

Deno.test("generateCorpus() translates as read by hand", () => {
  const translations = new Map(all.map(({ source, target }) => [source, target]));
  for (const [english, chinese] of READ) assertEquals(translations.get(english), chinese, english);
});

Deno.test("generateCorpus() gives disjoint parts of the sizes asked for", () => {
  assertEquals([corpus.train.length, corpus.dev.length, corpus.test.length], [12_000, 500, 500]);
  assertEquals(new Set(all.map(({ source }) => source)).size, 13_000);
  assertEquals(new Set(all.map(({ target }) => target)).size, 13_000);
});

Deno.test("generateCorpus() is deterministic by seed", () => {
  const small = { train: 50, dev: 5, test: 5 };
  assertEquals(generateCorpus({ ...small, seed: 3 }), generateCorpus({ ...small, seed: 3 }));
  assertNotEquals(generateCorpus({ ...small, seed: 3 }).train, generateCorpus({ ...small, seed: 4 }).train);
});

Deno.test("an English sentence has one translation", () => {
  const translations = new Map<string, string>();
  const pairs = drawPairs(77);
  for (let i = 0; i < 60_000; i++) {
    const { source, target } = pairs.next().value;
    const known = translations.get(source);
    if (known !== undefined) assertEquals(target, known, source);
    translations.set(source, target);
  }
});

Deno.test("sentences are well formed", () => {
  for (const { source, target } of all) {
    assert(/^[A-Z][A-Za-z ,.'-]*[.?!]$/.test(source), source);
    assert(/^[\p{Script=Han}，]+[。？！]$/u.test(target), target);
    assertEquals(source.endsWith("?"), target.endsWith("？"), source);
    assert(!/ {2}| [,.?!]|\b(\w+) \1\b/.test(source), source);
    const length = source.split(" ").length;
    assert(length >= 2 && length <= 25, source);
  }
});

Deno.test("the translation shows what the English says", () => {
  const rules: readonly (readonly [RegExp, RegExp])[] = [
    [/^(Does|Did|Is|Are|Will|Can|Have|Has) /, /吗？$/],
    [/^(What|Who|Where|When|Why|Which|Whose|How many) /, /[^吗]？$/],
    [/ than /, /比/],
    [/ because /, /^因为.*，所以/],
    [/^Although /, /^虽然.*，但是/],
    [/^If /, /^如果.*，.*就会/],
    [/(?<![-d]|and )\btwo\b/i, /两|二/],
    [/ (has|have) never /, /从来没有.*过/],
    [/ (is|are) (wearing|hanging) /, /着/],
    [/ by train/, /坐火车/],
    [/^The \w+ (who|that) /, /的那/],
    [/^There (is|are) (?!no)/, /有/],
  ];
  const used = rules.map(() => 0);
  for (const { source, target } of all) {
    rules.forEach(([english, chinese], i) => {
      if (!english.test(source)) return;
      used[i] = (used[i] ?? 0) + 1;
      assert(chinese.test(target), `${source} ${target}`);
    });
  }
  // Each construction is common enough to be learned.
  used.forEach((count, i) => assert(count >= 15, `${rules[i]?.[0]}: ${count}`));
});

Deno.test("numerals follow the rules of both languages", () => {
  const cases: readonly (readonly [number, string, string])[] = [
    [2, "two", "两"],
    [10, "ten", "十"],
    [12, "twelve", "十二"],
    [20, "twenty", "二十"],
    [22, "twenty-two", "二十二"],
    [99, "ninety-nine", "九十九"],
    [100, "one hundred", "一百"],
    [105, "one hundred and five", "一百零五"],
    [112, "one hundred and twelve", "一百一十二"],
    [220, "two hundred and twenty", "两百二十"],
    [1000, "one thousand", "一千"],
    [2002, "two thousand and two", "两千零二"],
    [2010, "two thousand and ten", "两千零一十"],
    [2300, "two thousand three hundred", "两千三百"],
    [9999, "nine thousand nine hundred and ninety-nine", "九千九百九十九"],
  ];
  for (const [n, english, chinese] of cases) {
    assertEquals(englishNumber(n), english);
    assertEquals(chineseCount(n), chinese);
  }
  assertEquals(chineseNumber(2), "二");
});

Deno.test("generateCorpus() refuses impossible sizes", () => {
  assertThrows(() => generateCorpus({ train: -1 }), RangeError, "train");
  assertThrows(() => generateCorpus({ dev: 1.5 }), RangeError, "dev");
});
